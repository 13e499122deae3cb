import { Client, credentials, Metadata, type StatusObject } from '@grpc/grpc-js';

const asIs = (bytes: Buffer) => bytes;
const deadlineMs = 20_000;

/**
 * Calls any method of any gRPC server with one empty message, as a client that knows no protocol, and returns how the
 * call ended. `authorization`: the header as it is; null: none.
 */
export async function probe(
  address: string,
  path: string,
  authorization: string | null,
): Promise<StatusObject & { answers: number }> {
  const client = new Client(address, credentials.createInsecure());
  const metadata = new Metadata();
  if (authorization !== null) metadata.set('authorization', authorization);
  try {
    const options = { deadline: Date.now() + deadlineMs };
    const call = client.makeBidiStreamRequest(path, asIs, asIs, metadata, options);
    let answers = 0;
    call.on('data', () => {
      answers += 1;
      // A watch would go on for ever.
      if (/\/Watch/.test(path)) call.cancel();
    });
    // The status says the same.
    call.on('error', () => {});
    const ended = new Promise<StatusObject>((resolve) => call.on('status', resolve));
    call.write(Buffer.alloc(0));
    call.end();
    return { ...(await ended), answers };
  } finally {
    client.close();
  }
}
