"""The server: OpenAI's HTTP interface in front of a service. Read app.py first."""
