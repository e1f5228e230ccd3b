// What the server understands and answers, as an OpenAPI 3.1 document.
#ifndef TINYSERVE_SERVER_OPENAPI_H_
#define TINYSERVE_SERVER_OPENAPI_H_

#include <boost/json/object.hpp>
#include <string>

namespace tinyserve {

// Limits that are set at start (of prompts, answers, the context) are told in words alone: the
// document is the same for every server of this version.
boost::json::object OpenApiDocument(const std::string& version);

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_OPENAPI_H_
