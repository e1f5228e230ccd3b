// Reads the *.golden files of make_tokenizers.py: a vocabulary, and what the reference makes of the
// corpus with it. Lines of words; a word is visible ASCII with other bytes as %NN.
#ifndef TINYSERVE_TESTS_GOLDEN_TEXT_GOLDEN_TEXT_H_
#define TINYSERVE_TESTS_GOLDEN_TEXT_GOLDEN_TEXT_H_

#include <cstdint>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "text/tokenizer.h"
#include "text/utf8.h"

namespace tinyserve::golden {

struct Text {
  std::string name, bytes;
};

// Ids of text `index` of the corpus.
struct Ids {
  size_t index;
  bool parse_special;
  std::vector<int32_t> ids;
};

// All characters of a block of code points from `first` on, each beside letters, digits and spaces.
struct Sweep {
  char32_t first;
  size_t count;          // of ids
  uint64_t fingerprint;  // FNV-1a of the ids
};

struct File {
  VocabSpec vocab;
  std::vector<Ids> cases;
  std::vector<Sweep> sweeps;
};

inline std::string Unescape(const std::string& word) {
  std::string bytes;
  for (size_t i = 0; i < word.size(); ++i) {
    if (word[i] == '%') {
      bytes.push_back(static_cast<char>(std::stoi(word.substr(i + 1, 2), nullptr, 16)));
      i += 2;
    } else {
      bytes.push_back(word[i]);
    }
  }
  return bytes;
}

inline std::ifstream Open(const std::string& name) {
  std::ifstream stream(std::string(TS_SOURCE_DIR "/tests/golden/text/") + name);
  if (!stream) throw std::runtime_error("cannot open tests/golden/text/" + name);
  return stream;
}

inline std::vector<Text> ReadCorpus() {
  std::vector<Text> texts;
  std::ifstream stream = Open("corpus.txt");
  for (std::string line; std::getline(stream, line);) {
    const size_t space = line.find(' ');
    texts.push_back({Unescape(line.substr(0, space)), Unescape(line.substr(space + 1))});
  }
  return texts;
}

// One line `key ...` of the vocabulary.
inline void ReadVocabLine(const std::string& key, std::istringstream& words, VocabSpec* vocab) {
  std::string word;
  words >> word;
  if (key == "model") {
    vocab->model = word;
  } else if (key == "pre") {
    vocab->pre = word;
  } else if (key == "bos") {
    vocab->bos = std::stoll(word);
  } else if (key == "eos") {
    vocab->eos = std::stoll(word);
  } else if (key == "unknown") {
    vocab->unknown = std::stoll(word);
  } else if (key == "add_bos") {
    vocab->add_bos = word == "1";
  } else if (key == "add_space_prefix") {
    vocab->add_space_prefix = word == "1";
  } else if (key == "merge") {
    vocab->merges.push_back(Unescape(word));
  } else if (key == "token") {
    vocab->types.push_back(std::stoll(word));
    words >> word;
    vocab->tokens.push_back(Unescape(word));
    if (double score; words >> score) vocab->scores.push_back(score);
  } else {
    throw std::runtime_error("unknown key " + key);
  }
}

inline File ReadFile(const std::string& name) {
  File file;
  std::ifstream stream = Open(name);
  for (std::string line; std::getline(stream, line);) {
    std::istringstream words(line);
    std::string key;
    words >> key;
    if (key == "ids") {
      Ids expected;
      words >> expected.index >> expected.parse_special;
      for (int32_t id; words >> id;) expected.ids.push_back(id);
      file.cases.push_back(std::move(expected));
    } else if (key == "sweep") {
      uint32_t first;
      Sweep sweep;
      words >> std::hex >> first >> std::dec >> sweep.count >> std::hex >> sweep.fingerprint;
      sweep.first = first;
      file.sweeps.push_back(sweep);
    } else {
      ReadVocabLine(key, words, &file.vocab);
    }
  }
  return file;
}

inline std::string SweepText(char32_t first) {
  std::string text;
  for (char32_t c = first; c < first + 0x1000; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    text += 'x';
    AppendUtf8(c, &text);
    text += "1 ";
    AppendUtf8(c, &text);
  }
  return text;
}

inline uint64_t Fingerprint(const std::vector<int32_t>& ids) {
  uint64_t value = 0xCBF29CE484222325;
  for (const int32_t id : ids) {
    for (int shift = 0; shift < 32; shift += 8) {
      value = (value ^ (static_cast<uint32_t>(id) >> shift & 0xFF)) * 0x100000001B3;
    }
  }
  return value;
}

}  // namespace tinyserve::golden

#endif  // TINYSERVE_TESTS_GOLDEN_TEXT_GOLDEN_TEXT_H_
