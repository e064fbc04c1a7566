"""Workers: processes that evaluate, their supervisor, and the documents they exchange."""
