// Writes the seeds of corpus/gguf: small valid files that between them use every part of the
// format.
#include <cstdio>
#include <string>
#include <vector>

#include "tensor/dtype.h"
#include "tests/support/gguf_builder.h"

namespace tinyserve {
namespace {

std::vector<uint8_t> Pattern(uint64_t bytes) {
  std::vector<uint8_t> out(bytes);
  for (uint64_t i = 0; i < bytes; ++i) out[i] = static_cast<uint8_t>(i * 37 + 11);
  return out;
}

GgufBuilder Scalars(uint32_t version) {
  GgufBuilder builder(version);
  builder.Uint8("u8", 1).Int8("i8", -1).Uint16("u16", 2).Int16("i16", -2).Uint32("u32", 3);
  builder.Int32("i32", -3).Uint64("u64", 4).Int64("i64", -4).Float32("f32", 0.5f);
  builder.Float64("f64", 0.25).Bool("bool", true).String("string", "text");
  return builder;
}

GgufBuilder Arrays() {
  GgufBuilder builder;
  builder.Strings("strings", {"", "a", "bc"}).Int32s("ints", {1, -1}).Float32s("floats", {0.5f});
  builder.Uint64s("longs", {1, 2}).Bools("bools", {true, false}).Strings("none", {});
  return builder;
}

GgufBuilder EveryTensorType() {
  GgufBuilder builder;
  builder.String("general.architecture", "llama");
  for (const DType type :
       {DType::kF32, DType::kF16, DType::kBF16, DType::kQ4_0, DType::kQ4_1, DType::kQ5_0,
        DType::kQ5_1, DType::kQ8_0, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K}) {
    const uint64_t cols = InfoOf(type).block_elems;
    builder.Tensor(InfoOf(type).name, type, {cols, 2}, Pattern(2 * RowBytes(type, cols)));
  }
  return builder;
}

GgufBuilder Dimensions() {
  GgufBuilder builder;
  builder.Alignment(8);
  builder.Tensor("one", DType::kF32, {3}, Pattern(12));
  builder.Tensor("two", DType::kF32, {3, 2}, Pattern(24));
  builder.Tensor("three", DType::kF32, {3, 2, 1}, Pattern(24));
  builder.Tensor("four", DType::kF32, {1, 2, 1, 2}, Pattern(16));
  return builder;
}

GgufBuilder Split() {
  GgufBuilder builder;
  builder.Uint16("split.no", 0).Uint16("split.count", 2).Int32("split.tensors.count", 3);
  return builder;
}

bool Write(const std::string& dir, const char* name, GgufBuilder builder) {
  const std::vector<uint8_t> bytes = builder.Build();
  FILE* out = std::fopen((dir + "/" + name).c_str(), "wb");
  if (out == nullptr) return false;
  const bool written = std::fwrite(bytes.data(), 1, bytes.size(), out) == bytes.size();
  return std::fclose(out) == 0 && written;
}

}  // namespace
}  // namespace tinyserve

int main(int argc, char** argv) {
  using namespace tinyserve;
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s DIR\n", argv[0]);
    return 2;
  }
  const std::string dir = argv[1];
  const bool written =
      Write(dir, "empty.gguf", GgufBuilder()) && Write(dir, "scalars_v2.gguf", Scalars(2)) &&
      Write(dir, "scalars_v3.gguf", Scalars(3)) && Write(dir, "arrays.gguf", Arrays()) &&
      Write(dir, "types.gguf", EveryTensorType()) && Write(dir, "dims.gguf", Dimensions()) &&
      Write(dir, "split.gguf", Split());
  if (!written) std::fprintf(stderr, "cannot write to %s\n", dir.c_str());
  return written ? 0 : 1;
}
