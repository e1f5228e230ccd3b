"""Random matrices in every GGUF type, each with the exact f32 values that its bytes stand for."""
import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import quants

SUPERBLOCK = 256  # elements of one K-quant block
K_TYPES = (T.Q4_K, T.Q5_K, T.Q6_K)


def _halves(values):
    """f16 bytes of one value a block: (n,) -> (n, 2)."""
    return values.astype("<f2").view(np.uint8).reshape(-1, 2)


def _pack_scales(sc, mn):
    """Eight 6-bit scales and minimums a block, (n, 8) each -> (n, 12): low six bits of the first four, whose upper two
    bits carry the top of the last four; the last four's low nibbles share a byte."""
    first = (sc[:, :4] & 63) | (sc[:, 4:] >> 4) << 6
    second = (mn[:, :4] & 63) | (mn[:, 4:] >> 4) << 6
    third = (sc[:, 4:] & 15) | (mn[:, 4:] & 15) << 4
    return np.concatenate([first, second, third], axis=1).astype(np.uint8)


def _random_k_blocks(rng, n, std, dtype):
    """n random, valid K-quant blocks whose values have about zero mean and the standard deviation `std`. The `gguf`
    package decodes these types but cannot encode them, so the codes themselves are drawn."""
    jitter = rng.uniform(0.5, 1.5, n)
    if dtype == T.Q6_K:
        codes = rng.integers(0, 256, (n, 128 + 64), dtype=np.uint8)
        scales = rng.integers(-64, 65, (n, 16)).astype(np.int8).view(np.uint8)
        return np.concatenate([codes, scales, _halves(jitter * std / (18.5 * 37.4))], axis=1)
    levels = 16 if dtype == T.Q4_K else 32
    code_bytes = 128 if dtype == T.Q4_K else 32 + 128
    sc = rng.integers(8, 64, (n, 8))
    mn = np.clip(sc + rng.integers(-4, 5, (n, 8)), 0, 63)
    d = jitter * std / (levels / 3.46 * 39.0)
    codes = rng.integers(0, 256, (n, code_bytes), dtype=np.uint8)
    return np.concatenate([_halves(d), _halves(d * (levels - 1) / 2), _pack_scales(sc, mn), codes], axis=1)


def random_matrix(rng, rows, cols, std, dtype):
    """-> (stored, values): the array to hand to GGUFWriter with raw_dtype=dtype, and its (rows, cols) f32 values."""
    if dtype in K_TYPES:
        blocks = _random_k_blocks(rng, rows * cols // SUPERBLOCK, std, dtype)
        stored = blocks.reshape(rows, -1)
    else:
        stored = quants.quantize((rng.standard_normal((rows, cols)) * std).astype(np.float32), dtype)
    values = quants.dequantize(stored, dtype).astype(np.float32).reshape(rows, cols)
    assert np.isfinite(values).all() and 0.5 * std < values.std() < 2 * std, (dtype.name, values.std(), std)
    return stored, values
