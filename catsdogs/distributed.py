"""Several processes that train together: joined, in agreement, and parted.

Each feeds its part of a batch (input_pipeline.py), process 0 alone writes
files and speaks, and whatever one of them decides, all decide.
"""

import contextlib
import faulthandler
import hashlib
import json
import os
import sys
import time
from typing import Any, Callable, Iterator

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P, Sharding
import jax.numpy as jnp
from jaxtyping import Array, Int
import numpy as np

from catsdogs.errors import UserError
from catsdogs.interruption import Interrupted

# Where no cluster says so: who process 0 is (JAX reads this one by itself),
# how many processes there are, and which of them this is.
_ADDRESS, _COUNT, _INDEX = _VARIABLES = (
    'JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
_MEND = (f'set {_ADDRESS}=HOST:PORT of process 0, {_COUNT} and {_INDEX}, or '
         'start under SLURM, Open MPI, or on a pod of TPUs')
# A process that is silent for so long is lost, and ends the others.
_HEARTBEAT_SECONDS = 30
# What a process 0 that fails leaves the others to say what they failed of.
_FAREWELL_SECONDS = 3
# What the errors of collectives name when another process is gone.
_OF_OTHERS = ('Gloo', 'NCCL', 'CoordinationService')


def initialize(asked: bool | None) -> None:
  """Joins the processes of the run, before anything touches a device.

  Args:
    asked: whether there are others; None where that is for the variables
      above, or the cluster that JAX finds, to say.

  Raises:
    UserError: there are to be others, but nothing says where.
  """
  if asked is None and os.environ.keys() & set(_VARIABLES):
    asked = True
  if asked is False or asked is None and _is_alone():
    return
  arguments = _arguments() if asked else {}
  # It would catch SIGTERM in our place, and agree on nothing else.
  jax.config.update('jax_enable_preemption_service', False)
  try:
    jax.distributed.initialize(
        heartbeat_timeout_seconds=_HEARTBEAT_SECONDS, **arguments)
  except ValueError as e:  # Nothing says where, or how many.
    if asked:
      raise UserError(f'--distributed: {e} To mend it, {_MEND}') from e
    return
  # Absl's dump of all threads would bury what JAX says when it aborts.
  faulthandler.disable()
  with _silent_stdout():  # Gloo greets there, for each group of devices.
    multihost_utils.sync_global_devices('joined')
    _highest_of(Mesh(jax.devices(), ('data',)))(0).block_until_ready()


def _arguments() -> dict[str, Any]:
  """What the variables say; nothing where a cluster is to say the most."""
  given = {name: os.environ.get(name, '') for name in _VARIABLES}
  count, index = given[_COUNT], given[_INDEX]
  if not count and not index:
    return {}
  _, _, port = given[_ADDRESS].rpartition(':')
  if not (port.isdecimal() and count.isdecimal() and index.isdecimal()
          and int(index) < int(count)):
    shown = ', '.join(f'{name}={value!r}' for name, value in given.items())
    raise UserError(f'--distributed: {shown} is not where and which this '
                    f'process is; {_MEND}')
  return {'coordinator_address': given[_ADDRESS],
          'num_processes': int(count), 'process_id': int(index)}


def _is_alone() -> bool:
  """Whether there is no need to look for a cluster.

  One of many runs side by side in a SLURM job must not look for the others;
  and in a Kubernetes pod that belongs to no job, JAX would fail to.
  """
  return os.environ.get('SLURM_NTASKS') == '1' or (
      'KUBERNETES_SERVICE_HOST' in os.environ and not (
          {'JOB_COMPLETION_INDEX', 'TPU_WORKER_HOSTNAMES'} & os.environ.keys()))


@contextlib.contextmanager
def _silent_stdout() -> Iterator[None]:
  """Nothing is printed on stdout, not even by what is written in C++."""
  sys.stdout.flush()
  kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, 1)
  try:
    yield
  finally:
    os.dup2(kept, 1)
    os.close(kept)
    os.close(nowhere)


@contextlib.contextmanager
def process_0_first() -> Iterator[None]:
  """Process 0 goes through the block, then all the others do."""
  index, alone = jax.process_index(), jax.process_count() == 1
  if index > 0:
    multihost_utils.sync_global_devices('after process 0')
  try:
    yield
  finally:
    if index == 0 and not alone:
      multihost_utils.sync_global_devices('after process 0')


def check_everywhere(satisfied: bool, problem: str) -> None:
  """Raises `UserError` in all processes where any of them is not satisfied."""
  if jax.process_count() > 1:
    satisfied = bool(multihost_utils.process_allgather(satisfied).all())
  if not satisfied:
    raise UserError(problem)


def check_same(text: str, problem: str) -> None:
  """Raises `UserError` in all processes unless they all hold the same text."""
  own = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
  first = multihost_utils.broadcast_one_to_all(own)
  check_everywhere(bool((own == first).all()), problem)


def rows_of_process(sharding: Sharding,
                    batch_size: int) -> Int[np.ndarray, 'rows']:
  """Which rows of a batch lie on the devices of this process, in order.

  Asked of the sharding, since a mesh may order devices by how they are wired,
  not by the process that they belong to.
  """
  places = sharding.addressable_devices_indices_map((batch_size,)).values()
  parts = sorted({place.indices(batch_size)[:2] for place, in places})
  return np.concatenate([np.arange(*part) for part in parts])


def gather(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
  """The rows of all processes, one process's after the other's."""
  if jax.process_count() == 1:
    return rows
  own = np.frombuffer(json.dumps(rows).encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.int32(len(own)))
  padded = np.pad(own, (0, lengths.max() - len(own)))
  texts = multihost_utils.process_allgather(padded)
  return [tuple(row) for text, length in zip(texts, lengths)
          for row in json.loads(text[:length].tobytes())]


def _highest_of(mesh: Mesh) -> Callable[[int], Int[Array, '']]:
  """What gives the highest of the numbers that the processes call it with."""
  divided = NamedSharding(mesh, P('data'))
  highest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, P()))

  def highest_of(number):
    own = np.full(jax.local_device_count(), number, np.int32)
    return highest(jax.make_array_from_process_local_data(divided, own))

  return highest_of


def in_agreement(check: Callable[[], None], mesh: Mesh
                 ) -> Callable[[], None]:
  """A `check` that raises in all processes at once if it does so in any.

  To be called equally often by all of them. What is asked in one call is
  answered in the next, so that nobody waits for the devices: they have the
  step between the two to do.

  Args:
    check: raises `Interrupted` where a signal asks this process to end.
    mesh: all devices.
  """
  if jax.process_count() == 1:
    return check
  highest, asked = _highest_of(mesh), []

  def check_together():
    status = 0
    try:
      check()
    except Interrupted as e:
      status = e.exit_status
    asked.append(highest(status))
    if len(asked) > 1 and (answer := int(asked.pop(0))):
      raise Interrupted(answer - 128)

  return check_together


@contextlib.contextmanager
def loss_of_others_ends() -> Iterator[None]:
  """Ends this process, at once, where another one is lost.

  At once, since whatever else there is to do would wait for the lost one.
  """
  try:
    yield
  except Exception as e:
    if (jax.process_count() == 1 or isinstance(e, (UserError, Interrupted))
        or not any(name in str(e) for name in _OF_OTHERS)):
      raise
    reason = ' '.join(str(e).split())[:200]
    print(f'Error: another process of this run is lost ({reason}); see what '
          'it says, and start all of them again: the run goes on from its '
          'last checkpoint', file=sys.stderr, flush=True)
    part()
    os._exit(1)


def part() -> None:
  """Lets the others leave first where this is process 0, which they need."""
  if jax.distributed.is_initialized() and jax.process_index() == 0:
    time.sleep(_FAREWELL_SECONDS)
