#include "select/registry.h"

#include <gtest/gtest.h>

#include <cstddef>

#include "select/selector.h"

namespace tinyserve {
namespace {

tinyserve_selector_v2 Table(const char* name = "mine",
                            const char* schema = R"({"properties":{}})") {
  return {.abi_version = TINYSERVE_SELECTOR_ABI_VERSION,
          .struct_size = sizeof(tinyserve_selector_v2),
          .name = name,
          .config_schema = schema,
          .needs = 0,
          .open = [](const tinyserve_shape*, const char*, void**, tinyserve_error*) { return 0; },
          .select = [](void*, const tinyserve_select_in*, uint32_t, uint32_t,
                       tinyserve_select_out*) { return 0; },
          .close = [](void*) {},
          .fused_id = 0,
          .fused = nullptr,
          .heeds_mass = 0,
          .sizes = nullptr,
          .summarise = nullptr,
          .observe = nullptr};
}

std::string MessageOf(const tinyserve_selector_v2& table) {
  return CheckSelectorTable(&table).message();
}

TEST(CheckSelectorTable, BuiltinsPass) {
  ASSERT_FALSE(AllSelectors().empty());
  for (const tinyserve_selector_v2* table : AllSelectors()) {
    EXPECT_EQ(CheckSelectorTable(table).message(), "") << table->name;
  }
  EXPECT_EQ(MessageOf(Table()), "");
}

TEST(CheckSelectorTable, OtherVersionsAndTruncatedTablesAreRefused) {
  EXPECT_EQ(CheckSelectorTable(nullptr).message(), "the table is null");
  // Only what the table has: reading on would leave it (the address sanitizer sees that).
  struct {
    uint32_t abi_version, struct_size;
  } header{.abi_version = 0, .struct_size = 8};
  const auto* table = reinterpret_cast<const tinyserve_selector_v2*>(&header);
  EXPECT_EQ(CheckSelectorTable(table).message(), "abi_version is 0: 2 is needed");
  header.abi_version = 1;  // an old one
  EXPECT_EQ(CheckSelectorTable(table).message(), "abi_version is 1: 2 is needed");
  header.abi_version = 3;
  EXPECT_EQ(CheckSelectorTable(table).message(), "abi_version is 3: 2 is needed");
  header.abi_version = 2;
  EXPECT_EQ(CheckSelectorTable(table).message(), "struct_size is 8: version 2 has " +
                                                     std::to_string(sizeof(tinyserve_selector_v2)) +
                                                     " bytes");
}

TEST(CheckSelectorTable, NamesTheFieldThatIsWrong) {
  for (const char* name : {"", "Upper", "a b", "a:b", "a,b"}) {
    EXPECT_NE(MessageOf(Table(name)).find("name must be"), std::string::npos) << name;
  }
  tinyserve_selector_v2 table = Table();
  table.needs = 1u << 20;
  EXPECT_EQ(MessageOf(table), "needs is 0x100000: known are the bits 0x7");
  table = Table();
  table.select = nullptr;
  EXPECT_EQ(MessageOf(table),
            "open, select (fused, where fused_id is not 0) and close must all be there");
  table = Table();
  table.fused_id = 7;
  EXPECT_EQ(MessageOf(table), "fused_id is 7: known are 0 and 1");
  table.fused_id = TINYSERVE_FUSED_CASCADE;
  table.needs = TINYSERVE_NEEDS_PLANES;
  EXPECT_NE(MessageOf(table), "");  // fused is missing
  table.fused = [](void*, void*, tinyserve_error*) { return 0; };
  EXPECT_EQ(MessageOf(table), "");
  table.heeds_mass = 1;
  EXPECT_EQ(MessageOf(table), "heeds_mass, sizes and observe are not for tables with a fused_id");
  table.heeds_mass = 2;
  EXPECT_EQ(MessageOf(table), "heeds_mass is 2: allowed are 0 and 1");
  table.heeds_mass = 0;
  table.needs = 0;
  EXPECT_EQ(MessageOf(table), "fused_id and the need of planes, alone, go together");
  table = Table();
  table.needs = TINYSERVE_NEEDS_PLANES | TINYSERVE_NEEDS_BOX;
  EXPECT_EQ(MessageOf(table), "fused_id and the need of planes, alone, go together");
}

TEST(CheckSelectorTable, WhatIsKeptMustHaveASize) {
  tinyserve_selector_v2 table = Table();
  table.summarise = [](void*, const tinyserve_page_in*, void*) { return 0; };
  EXPECT_EQ(MessageOf(table), "summarise is there without sizes");
  table.sizes = [](const tinyserve_shape*, const char*, tinyserve_sizes*, tinyserve_error*) {
    return 0;
  };
  EXPECT_EQ(MessageOf(table), "");
}

TEST(CheckSelectorTable, SchemasMustBeOnesThatSpecificationsCanWrite) {
  for (const char* schema :
       {"", "{", "[]", "{}", R"({"properties":[]})", R"({"properties":{"a":1}})",
        R"({"properties":{"a":{"type":"number"}}})",
        R"({"properties":{"a":{"type":"array","default":[]}}})",
        R"({"properties":{"a":{"type":"number","default":"x"}}})",
        R"({"properties":{"a":{"type":"integer","default":1.5}}})",
        R"({"properties":{"a":{"type":"string","default":1}}})",
        R"({"properties":{"a":{"type":"number","default":1,"minimum":"low"}}})",
        R"({"properties":{"a":{"type":"string","default":"x","enum":[1]}}})",
        R"({"properties":{"a=b":{"type":"number","default":1}}})",
        // Defaults that nobody could type.
        R"({"properties":{"a":{"type":"string","default":"x,y"}}})",
        R"({"properties":{"a":{"type":"string","default":"x","enum":["y"]}}})",
        R"({"properties":{"a":{"type":"number","default":2,"maximum":1}}})",
        R"({"properties":{"a":{"type":"number","default":1e301}}})",
        R"({"properties":{"a":{"type":"integer","default":18446744073709551615}}})"}) {
    EXPECT_NE(MessageOf(Table("mine", schema)), "") << schema;
  }
}

TEST(LoadSelectorPlugin, SaysWhatIsMissing) {
  const Status none = LoadSelectorPlugin("/nowhere/none.so");
  EXPECT_EQ(none.code(), Code::kNotFound);
  EXPECT_NE(none.message().find("plugin /nowhere/none.so: "), std::string::npos);
  // A shared object, but no plugin.
  const Status other = LoadSelectorPlugin("libm.so.6");
  EXPECT_EQ(other.message(), "plugin libm.so.6: it exports no tinyserve_selector");
}

}  // namespace
}  // namespace tinyserve
