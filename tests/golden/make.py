"""Makes the files beside it, with the originals of `tests/peers.txt`.

  PYTHONPATH=.:tests python tests/golden/make.py

`NAME.npz`: an original's logits for `peers.random_pictures` of two sizes on
`peers.random_weights`. `zip.pth`, `legacy.pth`: the same small tensors in
both of torch's formats, and in `tensors.npz` what they are.
"""

import pathlib

import numpy as np
import originals
import peers
import torch

FOLDER = pathlib.Path(__file__).parent
MEMBERS = ('resnet18', 'resnet50', 'resnext50_32x4d', 'wide_resnet50_2')
# For ten classes, of timm, Keras and BiT.
OTHERS = ('resnet18d', 'resnet10t', 'resnet50s', 'resnet50_gn', 'resnet50v1',
          'resnet50v2', 'bit_r50x1')
SIZES_PX = (64, 75)
SEED = 0


def make_logits() -> None:
  for name in MEMBERS:
    model = peers.torchvision_model(name, SEED)
    logits = {}
    for size_px in SIZES_PX:
      pictures = peers.random_pictures(size_px, SEED)
      features = peers.torchvision_features(model, pictures)
      logits[f'logits_{size_px}px'] = features['logits']
    np.savez_compressed(FOLDER / f'{name}.npz', **logits)


def make_logits_of_others() -> None:
  for name in OTHERS:
    original = next(iter(originals.sources(name).values()))()
    np.savez_compressed(FOLDER / f'{name}.npz', **{
        f'logits_{size_px}px': original.features(
            peers.random_pictures(size_px, SEED))['logits']
        for size_px in SIZES_PX})


def make_torch_files() -> None:
  """A wrapped state dict with every trait that a reader has to get right."""
  numbers = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
  tensors = {
      'plain': numbers,
      'transposed': numbers.permute(2, 0, 1),
      'slice': numbers[1, :, 1:3],
      'scalar': torch.tensor(7),
      'parameter': torch.nn.Parameter(torch.tensor([1.5, -2.5])),
      'float16': torch.tensor([0.5, -3.0], dtype=torch.float16),
      'bfloat16': torch.tensor([0.25, 1e30], dtype=torch.bfloat16),
      'float64': torch.tensor([1e-300], dtype=torch.float64),
      'int32': torch.tensor([[1, -2]], dtype=torch.int32),
      'uint8': torch.tensor([255], dtype=torch.uint8),
      'bool': torch.tensor([True, False]),
  }
  content = {
      'epoch': 3, 'best': 0.5, 'note': 'caf\xe9', 'none': None,
      'size': torch.Size([2, 3]),
      'optimizer': {'state': {0: numbers}, 'params': [0]},
      'state_dict': {f'module.{name}': x for name, x in tensors.items()},
  }
  torch.save(content, FOLDER / 'zip.pth')
  torch.save(content, FOLDER / 'legacy.pth',
             _use_new_zipfile_serialization=False)
  # numpy has no bfloat16; its values are exact in float32.
  np.savez_compressed(FOLDER / 'tensors.npz', **{
      name: (x.float() if x.dtype == torch.bfloat16 else x).detach().numpy()
      for name, x in tensors.items()})


if __name__ == '__main__':
  make_logits()
  make_logits_of_others()
  make_torch_files()
