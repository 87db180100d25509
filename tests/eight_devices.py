"""What eight simulated devices do, as JSON, for test_fsdp.py.

    python tests/eight_devices.py FOLDER

with 20 steps on one, and with `train.fsdp` on eight, and checkpoints from 1, 2,
4 and 8 devices onto each other.
"""

import itertools
import json
import os
import pathlib
import sys

os.environ.update(JAX_NUM_CPU_DEVICES='8', JAX_PLATFORMS='cpu')

import jax
from jax.sharding import AxisType
import numpy as np

from catsdogs.checkpoint import Checkpoints
from catsdogs.models import create_model, init_variables
from catsdogs.optimizer import (create_learning_rate_fn, create_optimizer,
                                split_params)
from catsdogs.preprocessing import Preprocessing
from catsdogs.train_state import (MIN_SPREAD_SIZE, create_train_state,
                                  state_sharding)
from catsdogs.train_step import create_train_step
from test_train import batch_of, tiny_config

FSDP = {'train.fsdp': True, 'optim.ema_decay': 0.9,
        'optim.learning_rate': 0.001}


def mesh_of(count):
  return jax.make_mesh((count,), ('data',), axis_types=(AxisType.Auto,),
                       devices=jax.devices()[:count])


def state_on(mesh, config):
  """A state on its devices, and the step that takes it."""
  model = create_model(config.model, 2)
  variables = init_variables(model, config.seed)
  trainable, _ = split_params(variables['params'], config.model.freeze)
  learning_rate_fn = create_learning_rate_fn(config.optim, 10, 20)
  optimizer = create_optimizer(config.optim, trainable, learning_rate_fn)
  state = create_train_state(variables, trainable, optimizer, ema=True)
  sharding = state_sharding(state, mesh, config.train.fsdp)
  step = create_train_step(
      config, model, Preprocessing(config.data.image_size), optimizer,
      learning_rate_fn, mesh, sharding)
  return jax.device_put(state, sharding), step


def nbytes_of_each(state):
  """What the arrays of a state take on each of the devices."""
  taken = {device.id: 0 for device in jax.devices()}
  for array in jax.tree.leaves(state):
    for shard in array.addressable_shards:
      taken[shard.device.id] += shard.data.nbytes
  return list(taken.values())


def trained(devices, **fields):
  """Losses of 20 steps, and the state after them."""
  state, step = state_on(mesh_of(devices), tiny_config(**{**FSDP, **fields}))
  losses = []
  for i in range(20):
    state, metrics = step(state, batch_of(i))
    losses.append(float(metrics['loss']))
  return losses, state


def moved(folder, state):
  """From how many devices to how many a checkpoint went without a change."""
  config, going = tiny_config(**FSDP), []
  targets = {count: state_on(mesh_of(count), config)[0]
             for count in (1, 2, 4, 8)}
  expected = jax.tree.map(np.asarray, state)
  for source, target in itertools.permutations(targets, 2):
    workdir = folder / f'{source}-{target}'
    shardings = jax.tree.map(lambda x: x.sharding, targets[source])
    for write, like in ((jax.device_put(state, shardings), None),
                        (None, targets[target])):
      checkpoints = Checkpoints(workdir, 2, lambda steps: None)
      if write is not None:
        checkpoints.save(write, {})
      else:
        restored, _ = checkpoints.restore_latest(like)
      checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, restored, expected)
    assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(
        lambda x: x.sharding, targets[target])
    going.append([source, target])
  return going


def main():
  losses, _ = trained(1, **{'train.fsdp': False})
  fsdp_losses, state = trained(8)
  arrays = jax.tree.leaves(state)
  print(json.dumps({
      'losses': losses, 'fsdp_losses': fsdp_losses,
      'spread': nbytes_of_each(state), 'total': sum(a.nbytes for a in arrays),
      'small': sum(a.nbytes for a in arrays if a.size < MIN_SPREAD_SIZE),
      'moved': moved(pathlib.Path(sys.argv[1]), state)}))


if __name__ == '__main__':
  main()
