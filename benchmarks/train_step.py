"""The training step beside others': python -m benchmarks.train_step --help"""

from benchmarks import contenders, side_by_side

_BUILDERS = {
    'ours': contenders.ours_training,
    'linen': contenders.linen_training,
    'torch': contenders.torch_training,
    'torch_compile': contenders.torch_compile_training,
    'keras': contenders.keras_training,
}

if __name__ == '__main__':
  side_by_side.run(
      'train_step',
      side_by_side.parser(__doc__, list(_BUILDERS)).parse_args(), _BUILDERS,
      contenders.ENVIRONMENTS)
