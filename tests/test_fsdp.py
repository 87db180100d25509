"""State spread over eight simulated devices, and moved between topologies."""

import itertools
import json
import os
import pathlib
import subprocess
import sys

import jax
from jax.sharding import AbstractMesh, PartitionSpec as P
import numpy as np
import pytest

from catsdogs.train_state import state_sharding

SCRIPT = pathlib.Path(__file__).parent / 'eight_devices.py'


@pytest.fixture(scope='module')
def answers(tmp_path_factory):
  done = subprocess.run(
      [sys.executable, str(SCRIPT), str(tmp_path_factory.mktemp('devices'))],
      capture_output=True, text=True, check=False, env={
          **os.environ,
          'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)})
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


def test_the_losses_are_those_of_one_device(answers):
  assert len(answers['losses']) == 20
  np.testing.assert_allclose(answers['fsdp_losses'], answers['losses'],
                             rtol=1e-4)


def test_each_device_holds_its_eighth_and_what_is_small(answers):
  assert len(answers['spread']) == 8
  total, small = answers['total'], answers['small']
  assert small < total / 4
  for nbytes in answers['spread']:
    assert nbytes == small + (total - small) / 8


def test_a_checkpoint_goes_from_any_number_of_devices_to_any(answers):
  assert answers['moved'] == [
      list(pair) for pair in itertools.permutations((1, 2, 4, 8), 2)]


def test_the_longest_dimension_that_the_devices_divide_is_spread():
  mesh = AbstractMesh((8,), ('data',))
  shapes = {'kernel': (3, 3, 64, 128), 'wide': (4096, 6), 'odd': (4097, 3),
            'small': (64,), 'scalar': ()}
  state = {name: jax.ShapeDtypeStruct(shape, np.float32)
           for name, shape in shapes.items()}
  specs = {name: sharding.spec for name, sharding in
           state_sharding(state, mesh, fsdp=True).items()}
  assert specs == {'kernel': P(None, None, None, 'data'), 'wide': P('data'),
                   'odd': P(), 'small': P(), 'scalar': P()}
  assert {s.spec for s in state_sharding(state, mesh, fsdp=False).values()
          } == {P()}
