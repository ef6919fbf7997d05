"""A process that serves a tiny model with fake tokenizers, and prints its port."""

import jax
import test_service
import tiny
from flax import nnx

from omnijax import config, sharding
from omnijax.model.transformer import Omni
from omnijax.serve import app, server
from omnijax.serve.settings import Settings

with jax.set_mesh(sharding.make_mesh(config.Mesh(data=1, fsdp=1))):
  model = jax.jit(lambda key: Omni(tiny.MODEL, test_service.VOCAB, sharding.RULES,
                                   rngs=nnx.Rngs(key)))(jax.random.key(0))
service = test_service.make_service(model, slots=4)
service.warm()
bound = server.bind("127.0.0.1", 0, 30.0)
server.Server(app.create(service, Settings()),
              lambda: print(bound.getsockname()[1], flush=True)).run([bound])
