"""A model behind OpenAI's API, HTTP and WebSocket, and a web page to talk to it. Read app.py first."""
