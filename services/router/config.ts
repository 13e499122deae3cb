import { z } from 'zod';
import {
  addresses,
  advertisedHost,
  clientTokenFields,
  humanBytes,
  humanCount,
  nodeName,
  serverFields,
  toggle,
} from '../common/config.js';
import { SwitchyardError } from '../common/errors.js';
import { messageLengthMax, windowBytes } from '../common/grpc-channel.js';
import { describeMemory, memoryBound, processBytes, usableCores } from '../common/machine.js';
import { defaultNodeName } from '../common/node-name.js';
import { chunkTokensMax } from '../transport/chunk-size.js';
import { transportChoices } from '../transport/link.js';

const mebibyte = 1024 * 1024;
/** Of messages of clients over gRPC that are here, or on their way in, and are in no chunk yet: the largest has room. */
export function messageRoomBytes(settings: Pick<RouterSettings, 'budgetBytes' | 'messageBytesMax'>): number {
  return Math.max(Math.floor(settings.budgetBytes / 4), messageLengthMax(settings.messageBytesMax));
}

/** HTTP/2's own limit before it knows another. */
const streamWindowBytesMin = 64 * 1024;

/** What a batch over gRPC may have sent that the router does not read: all batches together as much as they have room. */
export function clientWindowBytes({
  budgetBytes,
  batchesMax,
}: Pick<RouterSettings, 'budgetBytes' | 'batchesMax'>): number {
  const share = Math.floor(budgetBytes / 4 / batchesMax);
  return Math.min(windowBytes, Math.max(streamWindowBytesMin, share));
}

/** Beside the chunks: gates, norms, slabs whose views wait for the garbage collector. More than the least if there is room. */
const slabBytesBeside = { min: 64 * mebibyte, max: 256 * mebibyte };
const budgetBytesMin = 4 * mebibyte;

/** Bytes that slabs may take here. */
const slabRoom = () => memoryBound().value - processBytes;

/** What a router may have in flight unless told otherwise: it leaves half of a small memory to what is beside the chunks. */
function defaultBudgetBytes(): number {
  const room = Math.floor((slabRoom() - slabBytesBeside.min) / 2);
  return Math.min(Math.max(room, budgetBytesMin), 512 * mebibyte);
}

/** What a router is told wherever it runs: in a process of its own, or embedded in the coordinator. */
export const routerFields = {
  /** How token batches travel to workers. */
  transport: z.enum(transportChoices).default('auto'),
  /** With TLS: rows between hosts may travel over UCX as they are. */
  allowPlaintextRows: toggle().default(false),
  /** Bytes of all chunks in flight. */
  budgetBytes: humanBytes(budgetBytesMin).default(defaultBudgetBytes()),
  /** Tokens per chunk unless a batch says otherwise; 0: by bytes. */
  chunkTokens: humanCount(0, chunkTokensMax).default(0),
  /** The largest chunk of a client's message: rows and routing. */
  messageBytesMax: humanBytes(64 * 1024, 512 * mebibyte).default(16 * mebibyte),
  /** Threads for row operations. */
  threads: humanCount(1, 1024).default(usableCores()),
  /** A client that takes no answer for so long has stalled, and its batch ends. */
  clientStallMs: humanCount(100, 3_600_000).default(30_000),
  /** How long a batch waits for a cluster that is not ready. */
  readyWaitMs: humanCount(0, 3_600_000).default(30_000),
  /** Batches under way at once. */
  batchesMax: humanCount(1, 65_536).default(512),
  /** Parts of shared memory that clients of this machine may have registered at once; 0: none. */
  sharedMemoryRegions: humanCount(0, 4096).default(256),
  /** A coordinator silent for so long is lost, and joined again. */
  leaseMs: humanCount(100, 600_000).default(3_000),
  /** How long batches under way may take once the router stops. */
  drainMs: humanCount(0, 3_600_000).default(6_000),
};

/** With the address at which the process listens. */
export type RouterSettings = z.infer<z.ZodObject<typeof routerFields>> & { host: string };

export const routerSchema = z.object({
  ...serverFields,
  ...clientTokenFields,
  /** All of them: one leads. */
  coordinator: addresses().default(['127.0.0.1:7070']),
  name: nodeName().default(defaultNodeName('router')),
  advertiseHost: advertisedHost().nullable().default(null),
  ...routerFields,
});

export type RouterConfig = z.infer<typeof routerSchema>;

/** What clients may have sent over UCX that the router has not taken into its budget. */
export function channelBytesMax({ budgetBytes }: Pick<RouterSettings, 'budgetBytes'>): number {
  return Math.floor(budgetBytes / 4);
}

/**
 * The limit of a process's slabs when a router with these settings runs in it, and what draws it. Throws RESOURCE_EXHAUSTED
 * if they do not fit.
 */
export function routerSlabs(
  settings: RouterSettings,
  router: string,
): { slabBytesMax: number; slabSetting: string } {
  const { budgetBytes } = settings;
  const chunks = budgetBytes + channelBytesMax(settings);
  const room = slabRoom();
  if (chunks + slabBytesBeside.min <= room) {
    const slabBytesMax = Math.min(chunks + slabBytesBeside.max, room);
    return { slabBytesMax, slabSetting: `budgetBytes of router ${router}` };
  }
  const allowed = Math.floor((room - slabBytesBeside.min) / 1.25);
  throw new SwitchyardError(
    'RESOURCE_EXHAUSTED',
    `budgetBytes is ${budgetBytes}; allowed: ${allowed < budgetBytesMin ? 'no router' : `at most ${allowed}`}, ` +
      `within ${describeMemory(memoryBound())}: the process itself takes ${processBytes}, and slabs take a quarter more ` +
      `than budgetBytes and ${slabBytesBeside.min}`,
    { key: 'budgetBytes', value: budgetBytes, allowed },
  );
}
