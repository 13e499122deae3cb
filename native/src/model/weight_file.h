#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <memory>
#include <string>

namespace switchyard {

/**
 * A file of weights, which must stay as it was when it was opened: a read that finds it shorter, changed or replaced
 * throws MODEL_INVALID, which names the file. It is read and not mapped, because a mapping of a file that is cut short
 * ends the process.
 */
class WeightFile {
 public:
  /** Throws MODEL_INVALID, naming the path and the reason. */
  static std::shared_ptr<const WeightFile> open(const std::string& path);
  ~WeightFile();
  WeightFile(const WeightFile&) = delete;
  WeightFile& operator=(const WeightFile&) = delete;

  const std::string& path() const { return path_; }
  size_t size() const { return static_cast<size_t>(opened_.st_size); }
  /** Device, inode, size and times: equal texts mean the same content, unless it changed within one tick of its clock. */
  std::string identity() const;
  /** When its content, its name or its rights last changed, in milliseconds since 1970. */
  double changed_milliseconds() const;

  /** Any number of threads may read. */
  void read(size_t offset, size_t bytes, std::byte* out) const;
  /** Throws MODEL_INVALID unless its path still leads to this file and its identity is the same. */
  void require_unchanged() const;

 private:
  WeightFile(std::string path, int descriptor);

  std::string path_;
  int descriptor_;
  struct stat opened_ {};
};

}  // namespace switchyard
