#include <fmt/format.h>

#include "server/generation_fields.h"
#include "server/openai_request.h"
#include "server/prompt_fields.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

constexpr size_t kWordBytesMax = 64;

void ReadOwn(Fields* fields, const RequestLimits& limits, std::optional<ApiError>* error,
             EmbeddingRequest* request) {
  const json::object* object = fields->Object("tinyserve");
  request->deadline_ms = ReadDeadline(nullptr, limits);
  if (object == nullptr) return;
  Fields inner(*object, "tinyserve.", error);
  request->deadline_ms = ReadDeadline(&inner, limits);
  std::string pooling = "mean";
  inner.String("pooling", kWordBytesMax, &pooling);
  if (pooling != "mean" && pooling != "last")
    inner.Fail("pooling", "'tinyserve.pooling' is none of mean, last");
  request->pooling = pooling == "last" ? Pooling::kLast : Pooling::kMean;
  inner.RefuseOthers();
}

// No model served here was trained so that the beginning of a vector stands for all of it.
void ReadDimensions(Fields* fields, uint32_t dim) {
  int64_t dimensions = dim;
  fields->Integer("dimensions", 1, UINT32_MAX, &dimensions);
  if (dimensions == dim) return;
  fields->Fail("dimensions", fmt::format("'dimensions' is {}: this model's embeddings have {}, and "
                                         "cannot be cut",
                                         dimensions, dim));
}

}  // namespace

std::optional<EmbeddingRequest> ParseEmbeddingRequest(std::string_view body,
                                                      const RequestLimits& limits, uint32_t dim,
                                                      std::optional<ApiError>* error) {
  const std::optional<json::object> object = ParseBody(body, limits.json_depth_max, error);
  if (!object) return std::nullopt;
  Fields fields(*object, "", error);
  EmbeddingRequest request;
  ReadModel(&fields, limits);
  request.inputs = ReadPrompts(&fields, "input", limits.inputs_max, limits);
  std::string format = "float";
  fields.String("encoding_format", kWordBytesMax, &format);
  if (format != "float" && format != "base64")
    fields.Fail("encoding_format", "'encoding_format' is none of float, base64");
  request.base64 = format == "base64";
  ReadDimensions(&fields, dim);
  fields.Bool("add_special_tokens", &request.add_special);
  request.priority = ReadPriority(&fields);
  fields.String("cache_salt", kCacheSaltBytesMax, &request.cache_salt);
  ReadOwn(&fields, limits, error, &request);
  fields.Accept({"user", "metadata", "safety_identifier"});
  fields.RefuseUnsupported({"truncate_prompt_tokens", "messages"});
  fields.RefuseOthers();
  if (fields.failed()) return std::nullopt;
  return request;
}

}  // namespace tinyserve
