#pragma once

#include <string>

#include "ucx/fabric.h"

namespace switchyard::ucx {

/** Whether a list as in UCX_TLS leaves that transport in use; empty: all of them. */
bool transport_allowed(const std::string& list, const std::string& name);

/** As `transport_allowed`, of any transport of shared memory. */
bool shared_memory_allowed(const std::string& list);

/** A list that leaves in use what the other does, but for shared memory; if that is nothing, "self", which reaches nobody else. */
std::string without_shared_memory(const std::string& list);

/** The list that a fabric goes by, with the environment's UCX_TLS. */
std::string transports_of(Reach reach);

}  // namespace switchyard::ucx
