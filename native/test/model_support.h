#pragma once

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "model/weight_file.h"

namespace switchyard::test {

/** Files that are removed when the program ends: a weight file must stay where it is. */
class TemporaryFiles {
 public:
  static std::filesystem::path write(const void* data, size_t bytes) {
    static TemporaryFiles files;
    const auto name = "switchyard_" + std::to_string(::getpid()) + "_" + std::to_string(files.paths_.size());
    files.paths_.push_back(std::filesystem::path(testing::TempDir()) / name);
    std::ofstream(files.paths_.back(), std::ios::binary).write(static_cast<const char*>(data), static_cast<std::streamsize>(bytes));
    return files.paths_.back();
  }

  ~TemporaryFiles() {
    std::error_code ignored;
    for (const auto& path : paths_) std::filesystem::remove(path, ignored);
  }

 private:
  std::vector<std::filesystem::path> paths_;
};

template <typename Element>
std::shared_ptr<const WeightFile> weight_file(const std::vector<Element>& elements) {
  return WeightFile::open(TemporaryFiles::write(elements.data(), elements.size() * sizeof(Element)));
}

}  // namespace switchyard::test
