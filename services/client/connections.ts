import { connectivityState } from '@grpc/grpc-js';
import { SwitchyardError } from '../common/errors.js';
import type { InferenceClient } from '../common/generated/switchyard/v1/Inference.js';
import { type Credential, connect } from '../common/grpc-channel.js';
import { clients } from '../common/protocol.js';
import { fromServiceError, isWrongRole, speaksNoGrpc } from '../common/status.js';

/** Answers may come as whole chunks of a router, whatever it was told to make of them. */
export const answerBytesMax = 128 * 1024 * 1024;
/** How long a server that could not be reached is left alone. */
const downMs = 5_000;
const reasonMsMax = 1_000;

interface Connection {
  client: InferenceClient;
  /** Under way. */
  attempt: Promise<InferenceClient> | null;
  /** Why the last attempt failed, and until when (performance.now) no other is made unless one must be. */
  down: { error: SwitchyardError; untilMs: number } | null;
}

/** A client's connections to the servers of its cluster. One that broke is made again when it is asked for. */
export class Connections {
  private readonly byAddress = new Map<string, Connection>();
  /** Names of nodes by their addresses. */
  private names: ReadonlyMap<string, string> = new Map();

  /** `timeoutMs`: how long connecting may take. */
  constructor(
    private readonly credential: Credential,
    private readonly timeoutMs: number,
  ) {}

  /**
   * The client of a connection that stands. Rejects with NOT_READY if it cannot be made, and at once if that was so a moment
   * ago: later calls see whether it was made meanwhile. With `must` it waits for another attempt.
   */
  async to(address: string, must = false): Promise<InferenceClient> {
    const connection = this.byAddress.get(address) ?? this.add(address);
    if (stateOf(connection.client) === connectivityState.READY) return connection.client;
    const { down } = connection;
    if (down === null || must || performance.now() >= down.untilMs) {
      connection.attempt ??= this.attempt(address, connection).finally(() => {
        connection.attempt = null;
      });
    }
    if (down === null || must) return connection.attempt!;
    connection.attempt?.catch(() => {});
    throw down.error;
  }

  /** Which nodes the servers at these addresses are. */
  setNames(names: ReadonlyMap<string, string>): void {
    this.names = names;
  }

  /** Closes the connections to all other servers; calls under way there go on. */
  retain(addresses: ReadonlySet<string>): void {
    for (const [address, { client }] of this.byAddress) {
      if (addresses.has(address)) continue;
      client.close();
      this.byAddress.delete(address);
    }
  }

  private add(address: string): Connection {
    const connection = { client: this.open(address), attempt: null, down: null };
    this.byAddress.set(address, connection);
    return connection;
  }

  private open(address: string): InferenceClient {
    return connect(clients.Inference, address, {
      ...this.credential,
      messageBytesMax: answerBytesMax,
      node: this.names.get(address),
    });
  }

  private async attempt(address: string, connection: Connection): Promise<InferenceClient> {
    // A client that failed would wait before it tries again.
    if (connection.down !== null) connection.client = this.open(address);
    const { client } = connection;
    try {
      await this.connected(address, client);
      connection.down = null;
      return client;
    } catch (error) {
      // Left open, it would go on trying.
      client.close();
      connection.down = { error: error as SwitchyardError, untilMs: performance.now() + downMs };
      throw error;
    }
  }

  private async connected(address: string, client: InferenceClient): Promise<void> {
    const deadline = Date.now() + this.timeoutMs;
    for (;;) {
      const state = stateOf(client, true);
      if (state === connectivityState.READY) return;
      if (state === connectivityState.SHUTDOWN) throw unanswered(address, 'the connection was closed');
      if (state === connectivityState.TRANSIENT_FAILURE) throw await whyNot(address, client);
      if (Date.now() >= deadline) throw unanswered(address, `no connection within ${this.timeoutMs} ms`);
      await new Promise((resolve) => {
        client.getChannel().watchConnectivityState(state, deadline, resolve);
      });
    }
  }
}

/** With `connect` it begins to connect. A closed channel throws. */
function stateOf(client: InferenceClient, connect = false): connectivityState {
  try {
    return client.getChannel().getConnectivityState(connect);
  } catch {
    return connectivityState.SHUTDOWN;
  }
}

/** Only a call tells why there is no connection. */
function whyNot(address: string, client: InferenceClient): Promise<SwitchyardError> {
  return new Promise((resolve) => {
    client.describeModel({}, { deadline: Date.now() + reasonMsMax }, (error) => {
      const cause = fromServiceError(error ?? new Error('the connection broke'));
      resolve(unanswered(address, cause.message, cause));
    });
  });
}

/** Nobody at the address told what it was asked for. */
export function unanswered(address: string, reason: string, cause?: SwitchyardError): SwitchyardError {
  const isOther = cause !== undefined && isWrongRole(cause);
  const none = reason === speaksNoGrpc ? 'no server of a cluster is' : 'nothing answers';
  const what = isOther ? 'another kind of server is' : none;
  const text = `${what} at ${address}: ${reason}`;
  return new SwitchyardError('NOT_READY', text, { address }, { cause });
}
