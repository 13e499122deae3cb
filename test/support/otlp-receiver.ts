import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';

/** A span as it came. Times are nanoseconds since 1970. */
export interface ReceivedSpan {
  traceId: string;
  spanId: string;
  parentSpanId: string;
  name: string;
  start: bigint;
  end: bigint;
  /** Empty: it ended well. */
  error: string;
  attributes: Record<string, string | number>;
  /** The process that made it. */
  process: string;
}

interface WireValue {
  stringValue?: string;
  intValue?: number | string;
  doubleValue?: number;
}
type WireAttributes = { key: string; value: WireValue }[];
interface WireTraces {
  resourceSpans: {
    resource: { attributes: WireAttributes };
    scopeSpans: {
      spans: {
        traceId: string;
        spanId: string;
        parentSpanId?: string;
        name: string;
        startTimeUnixNano: string;
        endTimeUnixNano: string;
        status?: { code?: number; message?: string };
        attributes: WireAttributes;
      }[];
    }[];
  }[];
}

const errorStatus = 2;

/** Takes traces by OTLP over HTTP, as a collector does. */
export class OtlpReceiver {
  readonly spans: ReceivedSpan[] = [];

  private constructor(private readonly server: Server) {}

  /** `busy`: what it does first when something comes. */
  static async start(busy: () => Promise<void> = async () => {}): Promise<OtlpReceiver> {
    const server = createServer();
    const receiver = new OtlpReceiver(server);
    server.on('request', async (request, response) => {
      await busy();
      // Who waited too long has gone.
      if (request.destroyed) return;
      const parts: Buffer[] = [];
      for await (const part of request) parts.push(part as Buffer);
      receiver.take(JSON.parse(Buffer.concat(parts).toString('utf8')));
      response.setHeader('content-type', 'application/json').end('{}');
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    return receiver;
  }

  get endpoint(): string {
    return `http://127.0.0.1:${(this.server.address() as AddressInfo).port}/v1/traces`;
  }

  close(): void {
    this.server.close();
    this.server.closeAllConnections();
  }

  private take({ resourceSpans }: WireTraces): void {
    for (const { resource, scopeSpans } of resourceSpans) {
      const process = String(valuesOf(resource.attributes)['service.instance.id']);
      for (const span of scopeSpans.flatMap(({ spans }) => spans))
        this.spans.push({
          traceId: span.traceId,
          spanId: span.spanId,
          parentSpanId: span.parentSpanId ?? '',
          name: span.name,
          start: BigInt(span.startTimeUnixNano),
          end: BigInt(span.endTimeUnixNano),
          error: span.status?.code === errorStatus ? (span.status.message ?? '') : '',
          attributes: valuesOf(span.attributes),
          process,
        });
    }
  }
}

function valuesOf(attributes: WireAttributes): Record<string, string | number> {
  return Object.fromEntries(
    attributes.map(({ key, value }) => [
      key,
      value.stringValue ?? Number(value.intValue ?? value.doubleValue),
    ]),
  );
}
