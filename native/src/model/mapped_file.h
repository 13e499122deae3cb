#pragma once

#include <cstddef>
#include <memory>
#include <string>

namespace switchyard {

/** A file mapped for reading. Whoever truncates it while it is mapped ends the process: checkpoints must not change. */
class MappedFile {
 public:
  /** Throws MODEL_INVALID, naming the path and the reason. */
  static std::shared_ptr<const MappedFile> open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  MappedFile(std::string path, const std::byte* data, size_t size)
      : path_(std::move(path)), data_(data), size_(size) {}

  std::string path_;
  const std::byte* data_;
  size_t size_;
};

}  // namespace switchyard
