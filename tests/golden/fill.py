"""Deterministic fill, independent of torch's RNG: the rule every golden file is made by.

For each state-dict entry `name` (official key) of shape S:
  rng = numpy.random.default_rng(zlib.crc32(name.encode()))
  integer buffers (num_batches_tracked, index tables): left as the model made them
  name ends with 'running_var'  : rng.uniform(0.5, 1.5, S)
  name ends with 'running_mean' : 0.1 * rng.standard_normal(S)
  ndim >= 2                     : rng.standard_normal(S) / sqrt(prod(S[1:]))     (fan-in)
      except tokens / position tables (leading dim 1: cls_token, dist_token, pos_embed): 0.2 * standard_normal
  ndim == 1 (or (1,1,C)-shaped Affine) and name ends with '.weight' or '.alpha' or 'gamma*': 1 + 0.1 * standard_normal
  everything else (biases, beta): 0.1 * standard_normal
all cast to float32.

Input images: numpy.random.default_rng(0).standard_normal((B, 3, H, W)).astype(float32)
"""

import zlib

import numpy as np
import torch


def value(name, shape):
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    shape = tuple(shape)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "running_var":
        v = rng.uniform(0.5, 1.5, shape)
    elif leaf == "running_mean":
        v = 0.1 * rng.standard_normal(shape)
    elif len(shape) >= 2 and shape[0] == 1 and leaf != "weight":
        if leaf == "alpha":
            v = 1 + 0.1 * rng.standard_normal(shape)
        elif leaf == "beta":
            v = 0.1 * rng.standard_normal(shape)
        else:
            v = 0.2 * rng.standard_normal(shape)
    elif len(shape) >= 2:
        v = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    elif leaf in ("weight", "alpha") or leaf.startswith("gamma"):
        v = 1 + 0.1 * rng.standard_normal(shape)
    else:
        v = 0.1 * rng.standard_normal(shape)
    return v.astype(np.float32)


def fill(model):
    sd = model.state_dict()
    new = {
        k: (torch.from_numpy(np.asarray(value(k, v.shape))).reshape(v.shape) if v.is_floating_point() else v)
        for k, v in sd.items()
    }
    model.load_state_dict(new, strict=True)
    return new


def images(b, h, w, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((b, 3, h, w)).astype(np.float32))
