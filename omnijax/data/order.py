"""Hashes and permutations that are pure functions of their keys."""

import math

import numpy as np

_WORD = (1 << 64) - 1


def key(*parts: int) -> int:
  """64 bits that depend on every part and on their order."""
  out = 0x9E3779B97F4A7C15
  for part in parts:
    out = _finish((out ^ (part & _WORD)) * 0xD1342543DE82EF95 + 0x9E3779B97F4A7C15 & _WORD)
  return out


def _finish(x: int) -> int:
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _WORD
  x = (x ^ x >> 27) * 0x94D049BB133111EB & _WORD
  return x ^ x >> 31


def mix(x_N: np.ndarray, salt: int) -> np.ndarray:
  """64 hashed bits for each number; source: the finaliser of SplitMix64 (Steele et al. 2014)."""
  x_N = x_N.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt)
  x_N = (x_N ^ x_N >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
  x_N = (x_N ^ x_N >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
  return x_N ^ x_N >> np.uint64(31)


def permute(index_N: np.ndarray, size: int, salt: int) -> np.ndarray:
  """A keyed permutation of range(size), for some of its indices, without making it whole.

  A Feistel network over two digits a x b >= size, walked until it falls inside: since a and b
  differ by the least possible, nearly none has to walk (Black and Rogaway 2002).

  Args:
    index_N: numbers in [0, size).
    size: length of the permutation.
    salt: the key.

  Returns:
    int64 [N].
  """
  a = math.isqrt(size - 1) + 1
  b = -(-size // a)
  out_N = index_N.astype(np.int64)
  todo = np.arange(len(out_N))
  while len(todo):
    left, right = np.divmod(out_N[todo], b)
    for i in range(6):
      x, y, n = (left, right, a) if i % 2 == 0 else (right, left, b)
      x += (mix(y, key(salt, i)) >> np.uint64(32)).astype(np.int64) * n >> 32
      x -= np.where(x >= n, n, 0)
    moved = left * b + right
    out_N[todo] = moved
    todo = todo[moved >= size]
  return out_N
