import { randomInt } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:net';

/**
 * A port of 127.0.0.1 for a server that is told where to listen, or that ends and starts again there. The system gives ports of its own
 * range (net.ipv4.ip_local_port_range) to whoever asks for any, so one of those may be gone while its server is away; this one lies
 * below that range, and no other process that asks here gets it while this one lives.
 */
export async function fixedPort(): Promise<number> {
  for (let tries = 0; tries < 100; tries += 1) {
    const port = randomInt(first, end);
    // A name in Linux's abstract space of sockets: it ends with the process.
    if ((await canListen({ path: `\0switchyard-port-${port}` }, 'kept')) && (await canListen({ port, host })))
      return port;
  }
  throw new Error(`no port of ${host} from ${first} to ${end - 1} is free`);
}

const host = '127.0.0.1';
const first = 10_000;
const end = 32_768;

async function canListen(
  where: { path: string } | { port: number; host: string },
  kept?: 'kept',
): Promise<boolean> {
  const server = createServer().unref().listen(where);
  try {
    await once(server, 'listening');
  } catch {
    return false;
  }
  if (kept) return true;
  server.close();
  await once(server, 'close');
  return true;
}
