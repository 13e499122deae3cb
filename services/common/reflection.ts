import type {
  handleBidiStreamingCall,
  MethodDefinition,
  Server,
  ServerDuplexStream,
  ServiceDefinition,
  UntypedServiceImplementation,
} from '@grpc/grpc-js';
import type { EnumTypeDefinition, PackageDefinition } from '@grpc/proto-loader';
import { ReflectionService } from '@grpc/reflection';
import descriptor from 'protobufjs/ext/descriptor/index.js';

const { FileDescriptorProto } = descriptor;

interface FieldDescriptor {
  name: string;
  jsonName?: string;
  typeName?: string;
}

interface MessageDescriptor {
  name: string;
  field?: FieldDescriptor[];
  nestedType?: MessageDescriptor[];
  options?: { mapEntry?: boolean };
}

/**
 * protobufjs names the entry type of a map field `Labels`; descriptors must call it `LabelsEntry`, and
 * clients of reflection (grpcurl) refuse a file in which it has another name.
 */
function renameMapEntries(message: MessageDescriptor): void {
  for (const nested of message.nestedType ?? []) {
    renameMapEntries(nested);
    if (!nested.options?.mapEntry) continue;
    const field = message.field?.find(({ typeName }) => typeName === nested.name);
    if (!field) continue;
    const camel = field.name.replace(/_+([a-z0-9])/gi, (_, letter: string) => letter.toUpperCase());
    nested.name = `${camel.charAt(0).toUpperCase()}${camel.slice(1)}Entry`;
    field.typeName = nested.name;
  }
}

/** The loader names fields as JSON does; descriptors have both names, and clients of reflection take either. */
function renameFields(message: MessageDescriptor): void {
  for (const field of message.field ?? []) {
    field.jsonName = field.name;
    field.name = field.name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
  }
  for (const nested of message.nestedType ?? []) renameFields(nested);
}

function corrected(descriptor: Buffer): Buffer {
  const file = FileDescriptorProto.decode(descriptor);
  for (const message of (file as unknown as { messageType: MessageDescriptor[] }).messageType) {
    renameMapEntries(message);
    renameFields(message);
  }
  return Buffer.from(FileDescriptorProto.encode(file).finish());
}

/** Reflection over `definitions`, which lists `services` by their full names. */
function createReflection(definitions: PackageDefinition, services: string[]): ReflectionService {
  // Every type carries the files of its whole package; each file is needed once.
  const files = new Map<string, Buffer>();
  for (const definition of Object.values(definitions)) {
    if (!('fileDescriptorProtos' in definition)) continue;
    for (const file of (definition as EnumTypeDefinition).fileDescriptorProtos) {
      files.set(file.toString('latin1'), file);
    }
  }
  const fileDescriptorProtos = [...files.values()].map(corrected);
  const type: EnumTypeDefinition = {
    format: 'Protocol Buffer 3 EnumDescriptorProto',
    type: {},
    fileDescriptorProtos,
  };
  return new ReflectionService({ files: type }, { services });
}

type Method = MethodDefinition<unknown, unknown> & { handle: handleBidiStreamingCall<unknown, unknown> };

/** What a reflection would add to a server, by path. */
function methodsOf(reflection: ReflectionService): Map<string, Method> {
  const methods = new Map<string, Method>();
  const addService = (definition: ServiceDefinition, implementation: UntypedServiceImplementation) => {
    for (const [name, method] of Object.entries(definition)) {
      const handle = implementation[name] as Method['handle'];
      methods.set(method.path, { ...method, handle });
    }
  };
  reflection.addToServer({ addService } as unknown as Server);
  return methods;
}

/**
 * Adds reflection (v1 and v1alpha) over `definitions()` to a server; it lists `services` by their full names. It is made
 * when somebody asks for it: few do, and it takes a tenth of a process's start.
 */
export function addReflection(
  server: Server,
  definitions: () => PackageDefinition,
  services: string[],
): void {
  let methods: Map<string, Method> | null = null;
  for (const version of ['v1', 'v1alpha']) {
    const path = `/grpc.reflection.${version}.ServerReflection/ServerReflectionInfo`;
    const method = () => {
      methods ??= methodsOf(createReflection(definitions(), services));
      return methods.get(path)!;
    };
    server.register(
      path,
      (call: ServerDuplexStream<unknown, unknown>) => method().handle(call),
      (answer: unknown) => method().responseSerialize(answer),
      (bytes) => method().requestDeserialize(bytes),
      'bidi',
    );
  }
}
