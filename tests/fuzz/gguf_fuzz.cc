// The GGUF reader over any bytes: it answers or refuses, and what it answers can be read.
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/check.h"
#include "tensor/convert.h"
#include "tensor/gguf.h"

namespace tinyserve {
namespace {

void ReadTensors(const GgufFile& file, size_t size) {
  uint64_t tensor_bytes = 0;
  for (const StoredTensor& tensor : file.tensors()) {
    const uint64_t row_bytes = RowBytes(tensor.type, tensor.cols);
    TS_CHECK(tensor.bytes == tensor.rows * row_bytes);
    TS_CHECK(tensor.offset <= size && tensor.bytes <= size - tensor.offset);
    TS_CHECK(file.FindTensor(tensor.name) == &tensor);
    tensor_bytes += tensor.bytes;
    std::vector<float> row(tensor.cols);
    DequantizeRow(tensor.type, tensor.data, tensor.cols, row.data());
    DequantizeRow(tensor.type, tensor.data + (tensor.rows - 1) * row_bytes, tensor.cols,
                  row.data());
  }
  TS_CHECK(tensor_bytes == file.tensor_bytes() && tensor_bytes <= size);
}

void ReadMetadata(const GgufFile& file) {
  for (const MetaEntry& entry : file.metadata()) {
    TS_CHECK(file.Find(entry.key) == &entry.value);
    const int numbers = file.GetUint(entry.key).ok() + file.GetFloat(entry.key).ok();
    const int others = file.GetBool(entry.key).ok() + file.GetString(entry.key).ok();
    TS_CHECK(numbers == 0 || others == 0);
  }
}

}  // namespace
}  // namespace tinyserve

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace tinyserve;
  auto file = GgufFile::Parse({data, size}, "fuzz");
  if (!file.ok()) {
    TS_CHECK(!file.status().message().empty());
    return 0;
  }
  ReadTensors(**file, size);
  ReadMetadata(**file);
  return 0;
}
