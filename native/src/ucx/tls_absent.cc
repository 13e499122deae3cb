// Of a build without OpenSSL.
#include "ucx/tls.h"

namespace switchyard::ucx {

bool can_encrypt() { return false; }
std::unique_ptr<TlsSession> TlsSession::connecting(int, uint64_t, const Secret&, uint64_t) { return nullptr; }
std::unique_ptr<TlsSession> TlsSession::accepting(int, SecretOf, uint64_t) { return nullptr; }

}  // namespace switchyard::ucx
