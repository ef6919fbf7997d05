"""Starts training jobs on the engines people have: one file each, and all run `omnijax train`."""
