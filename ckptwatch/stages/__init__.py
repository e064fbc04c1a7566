"""The daemon's work, stage by stage along the data's way. Each joins two or three rooms; `daemon.py` joins the stages."""
