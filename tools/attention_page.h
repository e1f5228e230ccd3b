// The page that shows an AttentionRecord, without its data.
#ifndef TINYSERVE_TOOLS_ATTENTION_PAGE_H_
#define TINYSERVE_TOOLS_ATTENTION_PAGE_H_

#include <string_view>

namespace tinyserve {

// tools/attention.html, built into the program; {{DATA}} stands where JSON belongs.
extern const std::string_view kAttentionPage;

}  // namespace tinyserve

#endif  // TINYSERVE_TOOLS_ATTENTION_PAGE_H_
