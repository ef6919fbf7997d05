"""A run as a job of one or more processes: how they find each other, agree, and end."""
