import { join } from 'node:path';
import { expect, test } from '@jest/globals';
import protobuf from 'protobufjs';
import { packageRoot } from '../../native/locate.js';

const files = ['client', 'control', 'model', 'tokens'].map((name) => `switchyard/v1/${name}.proto`);

/** What travels: each field by its number, each value of an enum, each method, with what a version next to it relies on. */
function wireOf(directory: string): string[] {
  const root = new protobuf.Root();
  root.resolvePath = (_, target) => join(packageRoot(), directory, target);
  root.loadSync(files).resolveAll();
  return entriesOf(root);
}

function entriesOf(object: protobuf.ReflectionObject): string[] {
  const name = object.fullName;
  if (object instanceof protobuf.Enum)
    return Object.entries(object.values).map(([key, number]) => `${name}.${key} = ${number}`);
  if (object instanceof protobuf.Service)
    return object.methodsArray.map((method) => {
      const { requestStream, requestType, responseStream, responseType } = method;
      return `${name}/${method.name} ${requestStream ? 'stream ' : ''}${requestType} ${responseStream ? 'stream ' : ''}${responseType}`;
    });
  const fields = object instanceof protobuf.Type ? object.fieldsArray : [];
  const nested = object instanceof protobuf.Namespace ? object.nestedArray : [];
  return [
    ...fields.map((field) => {
      const kind = field.map ? 'map' : field.repeated ? 'repeated' : 'single';
      const oneof = field.partOf === null ? '' : ` of ${field.partOf.name}`;
      return `${name}.${field.name} = ${field.id} ${kind} ${field.resolvedType?.fullName ?? field.type}${oneof}`;
    }),
    ...nested.flatMap(entriesOf),
  ];
}

test('what version 0.1 says and hears is still there, by the same numbers and types', () => {
  const released = wireOf('test/fixtures/protos-0.1');
  expect(released.length).toBeGreaterThan(200);
  const present = new Set(wireOf('proto'));
  expect(released.filter((entry) => !present.has(entry))).toEqual([]);
});
