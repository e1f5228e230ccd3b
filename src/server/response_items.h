// Items of the responses' API, {"type": "message", …}, {"type": "function_call", …} and the like:
// what conversations are made of there.
#ifndef TINYSERVE_SERVER_RESPONSE_ITEMS_H_
#define TINYSERVE_SERVER_RESPONSE_ITEMS_H_

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>

#include "server/json_fields.h"
#include "server/openai_request.h"

namespace tinyserve {

// The member `input`: a text, or items. Fills `input` and the conversation's messages; both stay
// empty where it is absent.
void ReadInput(Fields* fields, const RequestLimits& limits, ResponseRequest* request);

// The messages that a response's output is, for conversations that go on from it. Calls whose
// arguments are no whole JSON are left out.
boost::json::array MessagesOfOutput(const boost::json::array& output, uint32_t json_depth_max);

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_RESPONSE_ITEMS_H_
