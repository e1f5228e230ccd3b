// Reads calls of tools from an answer's JSON, byte by byte as it is generated.
#ifndef TINYSERVE_SERVER_CALL_READER_H_
#define TINYSERVE_SERVER_CALL_READER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace tinyserve {

// A piece of an answer.
struct AnswerPart {
  enum class Kind : uint8_t {
    kText,
    kReasoning,
    kCall,       // a call begins; `text`: the tool's name
    kArguments,  // more of the text of its arguments, which is a JSON object in the end
  };
  Kind kind = Kind::kText;
  uint32_t call = 0;  // of the answer's calls, from 0
  std::string text;
};

// One JSON object {"name", "arguments" or "parameters"}, or a list of such objects. Other members
// are read over.
class CallReader {
 public:
  enum class State : uint8_t { kMore, kDone, kFailed };

  // `names`: tools that may be called; must outlive it. `first_call`: the number of its first call.
  CallReader(const std::vector<std::string>* names, uint32_t first_call);
  ~CallReader();
  CallReader(CallReader&&) noexcept;
  CallReader& operator=(CallReader&&) noexcept;

  // Appends what `byte` completes to `*out`: a call once its name and the beginning of its
  // arguments are known. kFailed: it is no call of a known tool. REQUIRES: kMore before.
  State Push(char byte, std::vector<AnswerPart>* out);
  // What was read and has become part of no call.
  const std::string& raw() const { return raw_; }

 private:
  class Parser;
  bool Emit(std::vector<AnswerPart>* out);  // false: not a call after all

  std::unique_ptr<Parser> parser_;
  const std::vector<std::string>* names_;
  uint32_t call_;
  std::string raw_;
  std::string arguments_;  // not given out yet
  bool begun_ = false;     // the call of now was given out
};

}  // namespace tinyserve

#endif  // TINYSERVE_SERVER_CALL_READER_H_
