#include "ucx/transports.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <sstream>
#include <vector>

namespace switchyard::ucx {
namespace {

struct List {
  /** The names are left out, instead of in use. */
  bool negated = false;
  std::vector<std::string> names;

  explicit List(const std::string& text) : negated(text.empty() || text.front() == '^') {
    std::istringstream given(negated && !text.empty() ? text.substr(1) : text);
    for (std::string name; std::getline(given, name, ',');) names.push_back(name);
  }

  std::string text() const {
    std::string all;
    for (const std::string& name : names) all += (all.empty() ? "" : ",") + name;
    return (negated ? "^" : "") + all;
  }
};

constexpr std::array shared_memory{"posix", "sysv", "cma", "knem", "xpmem"};
/** UCX's names for several of them. */
constexpr std::array shared_memory_groups{"mm", "sm", "shm"};

bool is_shared_memory(const std::string& name) {
  return std::ranges::find(shared_memory, name) != shared_memory.end() ||
         std::ranges::find(shared_memory_groups, name) != shared_memory_groups.end();
}

bool is_apart(Reach reach) { return reach == Reach::network_apart || reach == Reach::encrypted_apart; }

std::string wanted_by(Reach reach) {
  if (const char* const own = std::getenv("UCX_TLS")) return own;
  if (reach == Reach::machine) return "^tcp";
  if (reach == Reach::encrypted || reach == Reach::encrypted_apart) return "tcp,sm,self";
  return "";
}

}  // namespace

bool transport_allowed(const std::string& list, const std::string& name) {
  const List given(list);
  const bool queues = name == "posix" || name == "sysv" || name == "xpmem";
  const auto covers = [&](const std::string& named) {
    return named == name || named == "all" || named == "sm" || named == "shm" || (named == "mm" && queues);
  };
  return std::ranges::any_of(given.names, covers) != given.negated;
}

bool shared_memory_allowed(const std::string& list) {
  return std::ranges::any_of(shared_memory, [&](const char* name) { return transport_allowed(list, name); });
}

std::string without_shared_memory(const std::string& list) {
  List left(list);
  if (!left.negated && std::ranges::find(left.names, "all") != left.names.end()) return "^sm";
  std::erase_if(left.names, is_shared_memory);
  if (left.negated) left.names.push_back("sm");
  // An empty list would be all of them.
  if (left.names.empty()) left.names.push_back("self");
  return left.text();
}

std::string transports_of(Reach reach) {
  const std::string wanted = wanted_by(reach);
  return is_apart(reach) ? without_shared_memory(wanted) : wanted;
}

}  // namespace switchyard::ucx
