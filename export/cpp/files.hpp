// Bytes of files, and the one line that says why an input cannot be used.

#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace fs = std::filesystem;

// An input cannot be used; the message says why in one line.
struct InputError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <typename... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream joined;
  (joined << ... << parts);
  return joined.str();
}

inline bool is_file(const fs::path& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

// Returns the bytes of a file, mapped into memory as long as the program runs.
inline std::string_view mapped(const fs::path& path) {
  auto refuse = [&] { throw InputError(text(path.string(), " cannot be read: ", std::strerror(errno))); };
  int file = open(path.c_str(), O_RDONLY);
  if (file < 0) refuse();
  off_t size = lseek(file, 0, SEEK_END);
  void* bytes = size > 0 ? mmap(nullptr, size_t(size), PROT_READ, MAP_PRIVATE, file, 0) : nullptr;
  if (bytes == MAP_FAILED) refuse();
  close(file);
  return {static_cast<const char*>(bytes), size_t(size)};
}
