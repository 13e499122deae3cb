import { SwitchyardClient } from '../client/index.js';
import { readToken } from '../common/access.js';
import { addresses, presentedTokenFields } from '../common/config.js';

/** How to reach a running cluster: for every command that talks to one. */
export const connectionFields = {
  address: addresses().default(['127.0.0.1:7070']),
  ...presentedTokenFields,
};

export const connectionHelp = {
  address: ['host:port,…', 'the coordinator or any router of the cluster; several: any that answers'],
  token: ['token', "a client's or an operator's token; better in SWITCHYARD_TOKEN or --token-file"],
  tokenFile: ['file', 'file that holds the token'],
} as const;

/** Connects, does the work, and ends the connection whatever happens. */
export async function withClient<T>(
  config: { address: string[]; token: string | null; tokenFile: string | null },
  work: (client: SwitchyardClient) => Promise<T>,
): Promise<T> {
  const client = await SwitchyardClient.connect(config.address, { token: readToken(config) });
  try {
    return await work(client);
  } finally {
    client.destroy();
  }
}
