"""Inference beside others': python -m benchmarks.inference --help"""

from benchmarks import contenders, side_by_side

_BUILDERS = {
    'ours': contenders.ours_inference,
    'linen': contenders.linen_inference,
    'torch': contenders.torch_inference,
    'torch_compile': contenders.torch_compile_inference,
    'keras': contenders.keras_inference,
}

if __name__ == '__main__':
  side_by_side.run(
      'inference',
      side_by_side.parser(__doc__, list(_BUILDERS)).parse_args(), _BUILDERS,
      contenders.ENVIRONMENTS)
