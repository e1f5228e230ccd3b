#!/usr/bin/env python3
"""Writes gguf_py.gguf and gguf_py-0000?-of-00003.gguf with the writer of the `gguf` package.

src/tensor/gguf_test.cc reads them: a writer that shares nothing with our reader.
Needs gguf and numpy as pinned in requirements.txt. Run it in this folder.
"""

import gguf
import numpy as np


def add_tensors(writer):
    # Each tensor counts up from its own hundred.
    for index, shape in enumerate([(3, 4), (2, 8), (5,), (2, 2, 4)]):
        values = np.arange(np.prod(shape), dtype=np.float32) + 100 * index
        writer.add_tensor(f"t{index}", values.reshape(shape).astype(np.float16 if index == 1 else np.float32))
    q8 = gguf.quants.quantize(np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 64),
                              gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("q8", q8, raw_dtype=gguf.GGMLQuantizationType.Q8_0)


def add_metadata(writer):
    writer.add_uint8("a.u8", 250)
    writer.add_int8("a.i8", -7)
    writer.add_uint16("a.u16", 65000)
    writer.add_int16("a.i16", -30000)
    writer.add_uint32("a.u32", 4000000000)
    writer.add_int32("a.i32", -2000000000)
    writer.add_uint64("a.u64", 1 << 63)
    writer.add_int64("a.i64", -(1 << 62))
    writer.add_float32("a.f32", 0.5)
    writer.add_float64("a.f64", 0.1)
    writer.add_bool("a.bool", True)
    writer.add_string("a.string", "käse 🧀")
    writer.add_array("a.ints", [1, -2, 3])
    writer.add_array("a.floats", [0.25, -1.5])
    writer.add_array("a.bools", [True, False, True])
    writer.add_array("a.strings", ["", "one", "a string longer than any small buffer"])


def write(path, **split):
    writer = gguf.GGUFWriter(path, "llama", **split)
    add_metadata(writer)
    add_tensors(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    write("gguf_py.gguf")
    write("gguf_py.gguf", split_max_tensors=2)
