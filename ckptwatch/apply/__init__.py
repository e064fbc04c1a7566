"""The only room that changes a user's directory: aliases, removals by trash, restores, the root's marker."""
