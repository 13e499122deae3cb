import type { EnumTypeDefinition, PackageDefinition } from '@grpc/proto-loader';
import { ReflectionService } from '@grpc/reflection';
import descriptor from 'protobufjs/ext/descriptor/index.js';

const { FileDescriptorProto } = descriptor;

interface FieldDescriptor {
  name: string;
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

function corrected(descriptor: Buffer): Buffer {
  const file = FileDescriptorProto.decode(descriptor);
  for (const message of (file as unknown as { messageType: MessageDescriptor[] }).messageType) {
    renameMapEntries(message);
  }
  return Buffer.from(FileDescriptorProto.encode(file).finish());
}

/** Reflection (v1 and v1alpha) over `definitions`, which lists `services` by their full names. */
export function createReflection(definitions: PackageDefinition, services: string[]): ReflectionService {
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
