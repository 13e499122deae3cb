import { type ConnectOptions, SwitchyardClient, type TlsOptions } from '../client/index.js';
import { readToken } from '../common/access.js';
import { addresses, presentedTlsFields, presentedTokenFields } from '../common/config.js';
import { type TlsConfig, type TlsSettings, tlsSettingsOf } from '../common/tls.js';

/** What a command shows of itself, and whom it trusts. */
export const credentialFields = { ...presentedTokenFields, ...presentedTlsFields };

export const tlsHelp = {
  tlsCa: ['file', 'PEM file of who signs the certificates of servers: connections are encrypted'],
  tlsCert: ['file', 'PEM file of the certificate to show'],
  tlsKey: ['file', 'PEM file of its key'],
} as const;

export type CredentialConfig = TlsConfig & { token: string | null; tokenFile: string | null };
export type PresentedCredential = Required<Pick<ConnectOptions, 'token' | 'tls'>>;

/** What a client shows and trusts of the files of a process. */
export function presentedFiles(files: TlsSettings | null): TlsOptions | null {
  if (files === null) return null;
  const { ca, cert, key, allowPlaintextRows } = files;
  return { ca, cert, key, allowPlaintextRows };
}

export function readCredential(config: CredentialConfig): PresentedCredential {
  return { token: readToken(config), tls: presentedFiles(tlsSettingsOf(config, false)) };
}

/** How to reach a running cluster: for every command that talks to one. */
export const connectionFields = {
  address: addresses().default(['127.0.0.1:7070']),
  ...credentialFields,
};

export const connectionHelp = {
  address: ['host:port,…', 'the coordinator or any router of the cluster; several: any that answers'],
  token: ['token', "a client's or an operator's token; better in SWITCHYARD_TOKEN or --token-file"],
  tokenFile: ['file', 'file that holds the token'],
  ...tlsHelp,
} as const;

/** Connects, does the work, and ends the connection whatever happens. */
export async function withClient<T>(
  config: CredentialConfig & { address: string[] },
  work: (client: SwitchyardClient) => Promise<T>,
): Promise<T> {
  const client = await SwitchyardClient.connect(config.address, readCredential(config));
  try {
    return await work(client);
  } finally {
    client.destroy();
  }
}
