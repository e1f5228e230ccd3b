// GET /v1/models and /v1/models/{id}.
#include <fmt/format.h>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>

#include "server/api_error.h"
#include "server/routes.h"
#include "text/json_text.h"

namespace tinyserve {
namespace {

namespace json = boost::json;

json::object ModelJson(const Service& service, const std::string& name) {
  json::object model = {{"id", name},
                        {"object", "model"},
                        {"created", service.created()},
                        {"owned_by", "tinyserve"},
                        {"root", service.options().models.front()},
                        {"parent", nullptr}};
  if (service.engine() != nullptr) model["max_model_len"] = service.limits().context_tokens;
  return model;
}

}  // namespace

HttpReply ListModels(const Service& service, const HttpRequest&) {
  json::array list;
  for (const std::string& name : service.options().models) list.push_back(ModelJson(service, name));
  HttpReply reply;
  reply.body = ToJson(json::object{{"object", "list"}, {"data", std::move(list)}});
  return reply;
}

HttpReply OneModel(const Service& service, const HttpRequest& request) {
  const std::string asked = request.path.substr(std::string_view("/v1/models/").size());
  for (const std::string& name : service.options().models) {
    if (name != asked) continue;
    HttpReply reply;
    reply.body = ToJson(ModelJson(service, name));
    return reply;
  }
  return ErrorReply({.status = 404,
                     .message = fmt::format("the model '{}' is not served here", asked),
                     .param = "model",
                     .code = "model_not_found"});
}

}  // namespace tinyserve
