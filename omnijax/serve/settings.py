"""What a server allows its clients."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Limits of a server; each is told to the client that meets it."""

  api_keys: tuple[str, ...] = ()  # clients must have one of them; none: everybody may come
  rate: int = 0  # requests a minute of each key, or of each address where there are no keys; 0: any
  requests: int = 256  # at once; more are told to come back
  max_upload_mb: float = 25.0  # of a request's body
  max_audio_s: float = 60.0  # of all sounds in a request
  max_megapixels: float = 16.0  # of all pictures in a request
  image_size: int = 0  # pixels of the longer side that pictures are scaled down to; 0: by positions
  max_buffer_mb: float = 32.0  # of what a client has not read yet of its answer
  stall_s: float = 30.0  # that a client may neither read nor send in the middle of a request
  drain_s: float = 20.0  # that running requests have to end, once the server shall stop

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      least = 0 if field.name in ("rate", "image_size", "drain_s") else 1e-6
      if field.name != "api_keys" and not least <= value < float("inf"):
        raise ValueError(f"{field.name} is {value}; wanted {'0 or more' if not least else 'more'}"
                         f"{'' if not least else ' than 0'}.")
    if any(not key or not key.isascii() or key != key.strip() for key in self.api_keys):
      raise ValueError("an API key is empty, or has characters that a header can't carry; give "
                       "ASCII without blanks around it.")
