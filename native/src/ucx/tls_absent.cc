// Of a build without OpenSSL.
#include "ucx/tls.h"

namespace switchyard::ucx {

bool can_encrypt() { return false; }
std::unique_ptr<TlsSession> TlsSession::connecting(int, uint64_t, const Secret&) { return nullptr; }
std::unique_ptr<TlsSession> TlsSession::accepting(int, SecretOf) { return nullptr; }

}  // namespace switchyard::ucx
