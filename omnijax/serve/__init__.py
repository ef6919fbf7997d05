"""A model behind HTTP and WebSocket, by OpenAI's interfaces."""
