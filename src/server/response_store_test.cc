#include "server/response_store.h"

#include <gtest/gtest.h>

namespace tinyserve {
namespace {

StoredResponse Of(size_t bytes) { return {std::string(bytes, 'r'), "", ""}; }

void Store(ResponseStore* store, const std::string& id, size_t bytes, uint64_t owner = 1) {
  store->Begin(owner, id, Of(1), [] {});
  store->End(id, Of(bytes), /*keep=*/true);
}

TEST(ResponseStore, TheOldestGiveWayByCountAndByBytes) {
  ResponseStore store({.responses_max = 3, .bytes_max = 100});
  for (const char* id : {"a", "b", "c", "d"}) Store(&store, id, 10);
  EXPECT_EQ(store.Find(1, "a"), nullptr);
  EXPECT_EQ(store.Find(1, "b")->response.size(), 10u);
  EXPECT_EQ(store.bytes(), 30u);
  Store(&store, "e", 85);
  EXPECT_EQ(store.Find(1, "c"), nullptr);
  EXPECT_NE(store.Find(1, "d"), nullptr);
  EXPECT_EQ(store.size(), 2u);
  Store(&store, "f", 101);  // alone too large
  EXPECT_EQ(store.Find(1, "f"), nullptr);
  EXPECT_EQ(store.size(), 2u);
  EXPECT_TRUE(store.Erase(1, "d"));
  EXPECT_TRUE(store.Erase(1, "e"));
  EXPECT_EQ(store.bytes(), 0u);
}

TEST(ResponseStore, OwnersSeeTheirOwnAlone) {
  ResponseStore store({});
  Store(&store, "a", 10, 7);
  EXPECT_EQ(store.Find(8, "a"), nullptr);
  EXPECT_FALSE(store.Erase(8, "a"));
  EXPECT_TRUE(store.Erase(7, "a"));
  EXPECT_FALSE(store.Erase(7, "a"));
}

TEST(ResponseStore, WhatRunsCanBeCancelledAndDeleted) {
  ResponseStore store({});
  int cancelled = 0;
  store.Begin(1, "a", Of(3), [&] { ++cancelled; });
  EXPECT_EQ(store.Find(1, "a")->response.size(), 3u);
  EXPECT_FALSE(store.Cancel(2, "a"));
  EXPECT_TRUE(store.Cancel(1, "a"));
  EXPECT_EQ(cancelled, 1);
  store.End("a", Of(5), /*keep=*/true);
  EXPECT_FALSE(store.Cancel(1, "a"));
  EXPECT_EQ(store.Find(1, "a")->response.size(), 5u);
  store.Begin(1, "b", Of(3), [] {});
  EXPECT_TRUE(store.Erase(1, "b"));
  store.End("b", Of(5), /*keep=*/true);
  EXPECT_EQ(store.Find(1, "b"), nullptr);
  store.Begin(1, "c", Of(3), [] {});
  store.End("c", Of(5), /*keep=*/false);
  EXPECT_EQ(store.Find(1, "c"), nullptr);
  ResponseStore none({.responses_max = 0});
  Store(&none, "a", 1);
  EXPECT_EQ(none.size(), 0u);
}

}  // namespace
}  // namespace tinyserve
