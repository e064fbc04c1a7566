"""Metrics: `fid`, `inception_score`, `kid`, `clip_score`, `lpips`, and functions of the user's own (`custom`)."""
