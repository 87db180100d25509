"""Reads the pickle in a torch file without ever executing one.

A pickle is a program, and `pickle.Unpickler` runs it: even with a `find_class`
that refuses every foreign name, a few bytes can make it reserve gigabytes (a
memo index of 2**30) or hash for ever (a key of nested tuples). So its opcodes
are walked here one by one, and only those that a dict of tensors is written
with mean anything. Nothing is imported, nothing is called but the few functions
of this file, and no attribute is ever set.
"""

import io
import pickletools
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

# A ResNet-152's state dict takes 40,000 opcodes and 150 kB, its training
# checkpoint about three times that. The bounds keep a hostile file small.
MAX_OPCODES = 400_000
MAX_PICKLE_BYTES = 16 * 2**20
MAX_ARGUMENTS = 8

_DTYPES = {
    'torch.DoubleStorage': np.dtype('<f8'),
    'torch.FloatStorage': np.dtype('<f4'),
    'torch.HalfStorage': np.dtype('<f2'),
    'torch.BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
    'torch.LongStorage': np.dtype('<i8'),
    'torch.IntStorage': np.dtype('<i4'),
    'torch.ShortStorage': np.dtype('<i2'),
    'torch.CharStorage': np.dtype('i1'),
    'torch.ByteStorage': np.dtype('u1'),
    'torch.BoolStorage': np.dtype('?'),
}


class Storage(NamedTuple):
  """A run of numbers elsewhere in the file: `numel` of them, called `key`."""

  key: str
  dtype: np.dtype
  numel: int


class Tensor(NamedTuple):
  """A view of a storage, as the file claims it: nothing is checked yet.

  Attributes:
    storage: where its numbers are.
    offset: of the first one in the storage, in elements.
    shape: sizes of its dimensions.
    strides: steps of its dimensions, in elements.
  """

  storage: Any
  offset: Any
  shape: Any
  strides: Any


class _Global(str):
  """The name of a class or function that the pickle asks for."""


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any,
                    *unused: Any) -> Tensor:
  return Tensor(storage, offset, shape, strides)


def _rebuild_parameter(tensor: Any, *unused: Any) -> Any:
  return tensor


def _ordered_dict(pairs: list | tuple = ()) -> dict:
  result = _update({}, [x for key, value in pairs for x in (key, value)])
  # Emptied, or one long list could be gone through a hundred thousand times.
  if pairs:
    list.clear(pairs)
  return result


def _size(sizes: Any) -> tuple:
  return tuple(sizes[:MAX_ARGUMENTS])


# Stand-ins for what a pickle may call. The second and the fourth are of files
# from before torch 0.4, such as the first ResNets that torchvision published.
_FUNCTIONS = {
    'torch._utils._rebuild_tensor_v2': _rebuild_tensor,
    'torch._utils._rebuild_tensor': _rebuild_tensor,
    'torch._utils._rebuild_parameter': _rebuild_parameter,
    'torch.nn.parameter.Parameter': _rebuild_parameter,
    'torch.Size': _size,
    'collections.OrderedDict': _ordered_dict,
}
# Not LONG4: LONG1 holds 2,040 bits at most, but to multiply numbers of a
# million digits takes minutes.
_LITERALS = {
    'BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT', 'BINUNICODE',
    'SHORT_BINUNICODE', 'BINUNICODE8', 'BINSTRING', 'SHORT_BINSTRING',
}
_CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}
_EMPTY = {'EMPTY_DICT': dict, 'EMPTY_LIST': list, 'EMPTY_TUPLE': tuple}
_TUPLES = {'TUPLE1': 1, 'TUPLE2': 2, 'TUPLE3': 3}


def _global(module: str, name: str) -> _Global:
  """The name, if it is one of the few that tensors need.

  Raises:
    ValueError: it is another one.
  """
  full = f'{module}.{name}'
  if full not in _FUNCTIONS and full not in _DTYPES:
    raise ValueError(f'its pickle asks for {full[:80]!r}, which no dict of '
                     'tensors needs (nothing was run)')
  return _Global(full)


def _update(target: Any, items: list) -> dict:
  """Puts key, value, key, value ... into a dict."""
  if type(target) is not dict or len(items) % 2:
    raise ValueError('its pickle is damaged')
  for key, value in zip(items[::2], items[1::2]):
    # Only these: to hash a tuple of tuples of tuples can take for ever.
    if type(key) not in (str, int):
      raise ValueError(f'a key is a {type(key).__name__}, not a string')
    target[key] = value
  return target


def _storage(identity: Any) -> Storage:
  """A storage from its persistent id, as `torch.save` writes it."""
  kind, dtype, key, _, numel, *view = identity[:MAX_ARGUMENTS]
  # Before torch 0.4 a storage could be a part of another one.
  if (kind != 'storage' or type(dtype) is not _Global or dtype not in _DTYPES
      or type(key) is not str or type(numel) is not int or numel < 0
      or view not in ([], [None])):
    raise ValueError('a storage is of an unknown kind')
  return Storage(key, _DTYPES[dtype], numel)


def read_pickle(stream: io.BytesIO) -> tuple[Any, list[Storage]]:
  """Reads one pickle of dicts, lists, tuples, plain values and tensors.

  Args:
    stream: where the pickle begins; left where it ends.

  Returns:
    What it describes, with a `Tensor` for each tensor; and each mention of a
    storage.

  Raises:
    ValueError: it asks for anything else, is damaged, or is too long.
  """
  try:
    return _interpret(stream)
  # What wrong operands raise: too few, of another type, out of range.
  except (IndexError, KeyError, TypeError, OverflowError) as error:
    raise ValueError('its pickle is damaged') from error


def _interpret(stream: io.BytesIO) -> tuple[Any, list[Storage]]:
  """The stack machine itself; see `pickletools` for each opcode."""
  stack, marks, memo, storages = [], [], {}, []

  def pop_from(start: int) -> list:
    if not 0 <= start <= len(stack):
      raise IndexError
    items = stack[start:]
    del stack[start:]
    return items

  for count, (opcode, value, _) in enumerate(pickletools.genops(stream)):
    name = opcode.name
    if count > MAX_OPCODES:
      raise ValueError(f'its pickle has over {MAX_OPCODES} opcodes')
    if name == 'STOP':
      return stack.pop(), storages
    elif name in ('PROTO', 'FRAME'):
      pass
    elif name in _LITERALS:
      stack.append(value)
    elif name in _CONSTANTS:
      stack.append(_CONSTANTS[name])
    elif name in _EMPTY:
      stack.append(_EMPTY[name]())
    elif name in _TUPLES:
      stack.append(tuple(pop_from(len(stack) - _TUPLES[name])))
    elif name == 'MARK':
      marks.append(len(stack))
    elif name == 'TUPLE':
      stack.append(tuple(pop_from(marks.pop())))
    elif name == 'APPEND':
      item = stack.pop()
      list.append(stack[-1], item)
    elif name == 'APPENDS':
      items = pop_from(marks.pop())
      list.extend(stack[-1], items)
    elif name == 'SETITEM':
      item, key = stack.pop(), stack.pop()
      _update(stack[-1], [key, item])
    elif name == 'SETITEMS':
      items = pop_from(marks.pop())
      _update(stack[-1], items)
    elif name in ('BINPUT', 'LONG_BINPUT'):
      memo[value] = stack[-1]
    elif name == 'MEMOIZE':
      memo[len(memo)] = stack[-1]
    elif name in ('BINGET', 'LONG_BINGET'):
      stack.append(memo[value])
    elif name == 'GLOBAL':
      stack.append(_global(*value.split(' ', 1)))
    elif name == 'STACK_GLOBAL':
      attribute, module = stack.pop(), stack.pop()
      if type(attribute) is not str or type(module) is not str:
        raise ValueError('its pickle is damaged')
      stack.append(_global(module, attribute))
    elif name == 'REDUCE':
      arguments, function = stack.pop(), stack.pop()
      if (type(function) is not _Global or type(arguments) is not tuple
          or len(arguments) > MAX_ARGUMENTS):
        raise ValueError('its pickle is damaged')
      stack.append(_FUNCTIONS[function](*arguments))
    elif name == 'BUILD':
      # Attributes of an OrderedDict (`_metadata`) or a Parameter: no tensors.
      stack.pop()
    elif name == 'BINPERSID':
      storages.append(_storage(stack.pop()))
      stack.append(storages[-1])
    else:
      raise ValueError(f'its pickle uses {name}, which no dict of tensors '
                       'needs (nothing was run)')
