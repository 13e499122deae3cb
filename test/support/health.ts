import { credentials, makeClientConstructor } from '@grpc/grpc-js';
import { service as healthService } from 'grpc-health-check';

/** What grpc.health.v1 at host:port answers for a service, '' for the process as a whole: SERVING or NOT_SERVING. */
export async function healthOf(address: string, service = ''): Promise<string> {
  const Health = makeClientConstructor(healthService, 'Health');
  const client = new Health(address, credentials.createInsecure());
  try {
    return await new Promise((resolve, reject) =>
      client.check!({ service }, (error: Error | null, answer?: { status: string }) =>
        answer ? resolve(answer.status) : reject(error),
      ),
    );
  } finally {
    client.close();
  }
}
