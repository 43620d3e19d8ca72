"""The lab's service: its store over HTTP, for submitters, runners and people."""
