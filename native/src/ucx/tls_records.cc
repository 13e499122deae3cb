#include "ucx/tls_records.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>

#include <algorithm>
#include <string_view>

#include "runtime/error.h"

namespace switchyard::ucx {
namespace {

constexpr size_t key_bytes = 16, tag_bytes = 16;
constexpr size_t record_length_at = 3;

void check(bool good) {
  if (!good) throw Error(Code::internal, "OpenSSL cannot protect records with AES-128-GCM");
}

/** HKDF-Expand-Label of RFC 8446, 7.1, with SHA-256 and no context. */
void expand(const Secret& secret, std::string_view label, unsigned char* out, size_t length) {
  const std::unique_ptr<EVP_KDF, decltype(&EVP_KDF_free)> kdf(EVP_KDF_fetch(nullptr, "TLS13-KDF", nullptr), EVP_KDF_free);
  check(kdf != nullptr);
  const std::unique_ptr<EVP_KDF_CTX, decltype(&EVP_KDF_CTX_free)> context(EVP_KDF_CTX_new(kdf.get()), EVP_KDF_CTX_free);
  check(context != nullptr);
  int mode = EVP_KDF_HKDF_MODE_EXPAND_ONLY;
  char digest[] = "SHA256", prefix[] = "tls13 ";
  const auto octets = [](const char* name, const void* data, size_t size) {
    return OSSL_PARAM_construct_octet_string(name, const_cast<void*>(data), size);
  };
  const OSSL_PARAM parameters[] = {
      OSSL_PARAM_construct_int(OSSL_KDF_PARAM_MODE, &mode),
      OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, digest, 0),
      octets(OSSL_KDF_PARAM_KEY, secret.data(), secret.size()),
      octets(OSSL_KDF_PARAM_PREFIX, prefix, sizeof(prefix) - 1),
      octets(OSSL_KDF_PARAM_LABEL, label.data(), label.size()),
      OSSL_PARAM_construct_end(),
  };
  check(EVP_KDF_derive(context.get(), out, length, parameters) == 1);
}

}  // namespace

void RecordCipher::Freed::operator()(evp_cipher_ctx_st* context) const { EVP_CIPHER_CTX_free(context); }

RecordCipher::RecordCipher(const Secret& traffic_secret, bool seals)
    : context_(EVP_CIPHER_CTX_new()), seals_(seals), secret_(traffic_secret) {
  check(context_ && EVP_CipherInit_ex(context_.get(), EVP_aes_128_gcm(), nullptr, nullptr, nullptr, seals_) == 1);
  use_secret();
}

RecordCipher::~RecordCipher() { OPENSSL_cleanse(secret_.data(), secret_.size()); }

void RecordCipher::use_secret() {
  unsigned char key[key_bytes];
  expand(secret_, "key", key, sizeof(key));
  expand(secret_, "iv", iv_.data(), iv_.size());
  check(EVP_CipherInit_ex(context_.get(), nullptr, nullptr, key, nullptr, -1) == 1);
  OPENSSL_cleanse(key, sizeof(key));
  records_ = 0;
}

void RecordCipher::renew() {
  Secret next;
  expand(secret_, "traffic upd", next.data(), next.size());
  secret_ = next;
  OPENSSL_cleanse(next.data(), next.size());
  use_secret();
}

/** Of the next record (RFC 8446, 5.3). */
std::array<unsigned char, 12> RecordCipher::nonce() {
  auto nonce = iv_;
  for (size_t i = 0; i < sizeof(records_); ++i) nonce[nonce.size() - 1 - i] ^= static_cast<unsigned char>(records_ >> (8 * i));
  ++records_;
  return nonce;
}

void RecordCipher::seal(ContentType type, const void* content, size_t length, unsigned char* record) {
  EVP_CIPHER_CTX* const context = context_.get();
  const size_t sealed = length + trailer_bytes;
  // As TLS 1.2 would have it.
  record[0] = static_cast<unsigned char>(ContentType::application_data);
  record[1] = record[2] = 3;
  record[record_length_at] = static_cast<unsigned char>(sealed >> 8);
  record[record_length_at + 1] = static_cast<unsigned char>(sealed);
  unsigned char* const out = record + header_bytes;
  const auto inner_type = static_cast<unsigned char>(type);
  int moved = 0;
  check(EVP_EncryptInit_ex(context, nullptr, nullptr, nullptr, nonce().data()) == 1 &&
        EVP_EncryptUpdate(context, nullptr, &moved, record, header_bytes) == 1 &&
        EVP_EncryptUpdate(context, out, &moved, static_cast<const unsigned char*>(content), static_cast<int>(length)) == 1 &&
        EVP_EncryptUpdate(context, out + length, &moved, &inner_type, 1) == 1 &&
        EVP_EncryptFinal_ex(context, out + length + 1, &moved) == 1 &&
        EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, tag_bytes, out + length + 1) == 1);
}

std::optional<RecordCipher::Opened> RecordCipher::open(const unsigned char* record, size_t length, void* content) {
  EVP_CIPHER_CTX* const context = context_.get();
  const unsigned char* const in = record + header_bytes;
  auto* const out = static_cast<unsigned char*>(content);
  size_t inner = length - trailer_bytes;
  unsigned char tag[tag_bytes], type = 0, none[tag_bytes];
  std::copy_n(in + inner + 1, tag_bytes, tag);
  int moved = 0;
  const bool genuine = EVP_DecryptInit_ex(context, nullptr, nullptr, nullptr, nonce().data()) == 1 &&
                       EVP_DecryptUpdate(context, nullptr, &moved, record, header_bytes) == 1 &&
                       EVP_DecryptUpdate(context, out, &moved, in, static_cast<int>(inner)) == 1 &&
                       EVP_DecryptUpdate(context, &type, &moved, in + inner, 1) == 1 &&
                       EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_TAG, tag_bytes, tag) == 1 &&
                       EVP_DecryptFinal_ex(context, none, &moved) == 1;
  if (!genuine) return std::nullopt;
  while (type == 0 && inner > 0) type = out[--inner];
  return Opened{static_cast<ContentType>(type), inner};
}

}  // namespace switchyard::ucx
