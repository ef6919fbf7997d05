"""A model behind OpenAI's API, HTTP and WebSocket, and a web page. Read app.py first."""
